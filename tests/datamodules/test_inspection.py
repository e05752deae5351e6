# SPDX-License-Identifier: Apache-2.0
"""What is said of shards is what was put into them."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from ixc_lightning.datamodules.inspection import Spread, inspect_records, open_any
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.types import InputError
from tests.datamodules.broken import write_tar


def picture(width, height, shade=0):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def pair(key, prompt, chosen, rejected, *pictures, **fields):
    files = {f"{place:02d}.png": data for place, data in enumerate(pictures)}
    content = [*({"type": "image", "file": name} for name in files), {"type": "text", "text": prompt}]
    record = {"id": key, "source": "test", "domain": "reading", "chosen": chosen, "rejected": rejected}
    record["messages"] = [{"role": "user", "content": content}]
    return Sample(key, record | fields, files)


PAIRS = [
    pair("a", "Which is it?", "four", "44", picture(30, 20)),
    pair("b", "which  IS it?", "four", "44", picture(30, 20)),  # a, but for case and white space
    pair("c", "Which is it?", "five", "fi", picture(30, 20)),  # the prompt of a
    pair("d", "Which is it?", "four", "44", picture(50, 40, shade=9), domain="sums"),  # another picture
    pair("e", "Two?", "22", "four", picture(30, 20), picture(10, 10)),
    pair("f", "Two?", "22", "33", source="other"),
]


@pytest.fixture
def folder(tmp_path):
    write_shards(PAIRS, tmp_path / "set", kind="preference", samples_per_shard=4)
    return tmp_path / "set"


def inspection(folder, encoder=None):
    dataset, damage = open_any(folder)
    found = inspect_records(dataset, range(len(dataset)), encoder=encoder)
    for bad in damage:
        found.add_broken(bad)
    return found


def test_records_are_counted(folder):
    found = inspection(folder)
    assert (found.kind, found.shards, found.samples) == ("preference", 2, 6)
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert found.modalities == {"image": 4, "multi_image": 1, "text": 1}
    assert found.domains == {"reading": 5, "sums": 1}
    assert found.sources == {"test": 5, "other": 1}
    assert not found.broken


def test_lengths_are_those_of_the_texts(folder):
    values = inspection(folder).values
    assert list(values["prompt, characters"]) == [12, 13, 12, 12, 4, 4]
    assert list(values["chosen, characters"]) == [4, 4, 4, 4, 2, 2]
    assert list(values["rejected, characters"]) == [2, 2, 2, 2, 4, 2]
    assert list(values["chosen / rejected, characters"]) == [2, 2, 2, 2, 0.5, 1]
    assert inspection(folder).longer == 4


def test_media_have_their_sizes(folder):
    values = inspection(folder).values
    assert list(values["image, width"]) == [30, 30, 30, 50, 30, 10]
    assert list(values["image, height"]) == [20, 20, 20, 40, 20, 10]
    assert values["image, kB"][0] == len(picture(30, 20)) / 1000


def test_what_occurred_before_is_counted(folder):
    """b repeats a; b and c repeat its prompt; its picture occurs again in b, c and e."""
    assert inspection(folder).repeats == {"records": 1, "prompts with their media": 2, "media": 3}


def test_tokens_are_those_that_training_sees(folder, tiny_folder):
    encoder = ChatEncoder(str(tiny_folder))
    dataset, _ = open_any(folder)
    values = inspection(folder, encoder).values
    for number in range(len(dataset)):
        record = dataset.record(number)
        encoded = encoder(record, record.messages, [record.chosen, record.rejected])
        chosen, rejected = map(len, encoded.responses)
        assert values["prompt, tokens"][number] == len(encoded.ids)
        assert values["prompt and response, tokens"][number] == len(encoded.ids) + max(chosen, rejected)
        assert values["chosen / rejected, tokens"][number] == chosen / rejected


def test_instructions_and_prompts_are_told_apart_from_pairs(tmp_path, digits):
    for kind in ("instruction", "prompt"):
        for source in (digits / kind).rglob("*.tar"):
            shutil.copy(source, tmp_path / f"{kind}-{source.name}")  # no manifest says the kind
    found = inspection(next(tmp_path.glob("instruction-*.tar")))
    assert (found.kind, set(found.repeats)) == (
        "instruction",
        {"records", "prompts with their media", "media"},
    )
    assert "response, characters" in found.values
    assert inspection(next(tmp_path.glob("prompt-*.tar"))).kind == "prompt"


def test_broken_records_are_counted_by_cause_and_add_nothing_else(folder, tmp_path):
    sound = {"s0": PAIRS[0].record, "s1": PAIRS[5].record}
    no_domain = {name: value for name, value in PAIRS[5].record.items() if name != "domain"}
    write_tar(
        tmp_path / "a.tar",
        [
            *((f"{key}.json", record) for key, record in sound.items()),
            ("s0.00.png", picture(3, 3)),
            ("s2.json", no_domain),
            ("s3.json", no_domain),
            ("s4.json", PAIRS[0].record),
            ("s4.00.png", b"no picture"),
        ],
    )
    found = inspection(tmp_path / "a.tar")
    assert found.samples == 5
    assert found.modalities.total() == len(found.values["prompt, characters"]) == 2
    assert list(found.broken.values()) == [2, 1]
    missing, damaged = found.examples.values()
    assert "sample 's2', domain: is missing" in missing
    assert "s4.00.png: is no picture" in damaged


def test_the_sound_part_of_a_shard_that_is_cut_off_is_read(folder):
    path = folder / "shard-000000.tar"
    path.with_suffix(".index.jsonl").unlink()
    (folder / "manifest.json").unlink()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = inspection(path)
    assert found.modalities
    assert found.broken.total() >= 1
    assert any(str(path) in example for example in found.examples.values())


def test_shards_without_one_sound_record_are_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("s.json", {"id": "1"})])
    with pytest.raises(InputError, match=r"none of the first records is sound, .*a.tar, sample 's'"):
        open_any([tmp_path / "a.tar"])


def test_a_spread_is_of_values_that_occur():
    assert Spread.of([3.0]) == (3, 3, 3, 3)
    assert Spread.of(list(range(1, 11))) == (1, 5, 9, 10)
    assert Spread.of(np.arange(1, 101)[::-1].tolist()) == (1, 50, 90, 100)
