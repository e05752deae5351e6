# SPDX-License-Identifier: Apache-2.0
"""Kept and removed shards are the data set parted in two, with its bytes; results come and go whole."""

import json

import numpy as np
import pytest

from ixc_lightning.datamodules import CleaningDataModule
from ixc_lightning.datamodules.cleaning import replaced_folder
from ixc_lightning.datamodules.cleaning_verdicts import Limits
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Manifest
from ixc_lightning.datamodules.sources.planted_noise import convert
from ixc_lightning.types import InputError
from tests.datamodules.broken import write_tar
from tests.datamodules.test_cleaning_verdicts import bad, row
from tests.datamodules.test_contrast import record, write
from tests.digits import FRAMES, PAIRS

SHOWN = 5


@pytest.fixture(scope="module")
def noisy(digits, tmp_path_factory):
    """The small instruction set, a quarter of it spoilt."""
    out = tmp_path_factory.mktemp("noisy") / "set"
    convert(str(digits / "instruction/train"), str(out), share=0.25)
    return out


def data(tiny_folder, shards, **options):
    module = CleaningDataModule(
        str(tiny_folder), predict=str(shards), kind="instruction", video_frames=FRAMES, **options
    )
    module.setup("predict")
    return module


def told(shards, *, scores=None):
    """Rows as scoring writes them: by default noise scores low, in the order of the records."""
    found = SampleShards(shards, kind="instruction")
    for number in range(len(found)):
        sample = found.sample(number, media=False)
        score = number / 100 - 10 * (sample.record["answer"]["noise"] is not None)
        score = score if scores is None else scores[number]
        own = row(number, score, sample.record["domain"], found.modality(number))
        yield {**own, "shard": found.place(number)[0], "key": sample.key}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples(folder):
    found = SampleShards(folder, kind="instruction")
    return {sample.key: sample for sample in map(found.sample, range(len(found)))}


def test_kept_and_removed_are_the_set_parted_in_two(tiny_folder, noisy, tmp_path):
    module = data(tiny_folder, noisy)
    summary = module.write_cleaned(
        lambda: told(noisy), tmp_path / "out", limits=Limits(threshold=-5.0), shown=SHOWN
    )
    whole, kept, removed = (
        samples(folder) for folder in (noisy, tmp_path / "out/kept", tmp_path / "out/removed")
    )
    assert {**kept, **removed} == whole  # JSON and the bytes of all media
    assert list(kept) == [key for key in whole if key in kept]
    assert not kept.keys() & removed.keys()
    is_noise = {key: sample.record["answer"]["noise"] is not None for key, sample in whole.items()}
    assert {key for key in whole if is_noise[key]} == removed.keys()
    assert (summary["records"], summary["kept"], summary["removed"]) == (PAIRS, 36, 12)
    assert json.loads((tmp_path / "out/summary.json").read_text()) == json.loads(json.dumps(summary))
    reasons = lines(tmp_path / "out/removed.jsonl")
    assert [line["key"] for line in reasons] == list(removed)
    assert all(line["reasons"] == [f"score {line['score']:.4g} is below -5.0"] for line in reasons)
    assert Manifest.load(tmp_path / "out/kept").samples == 36


def test_the_summary_says_how_much_of_the_noise_was_found(tiny_folder, noisy, tmp_path):
    module = data(tiny_folder, noisy)
    limits = Limits(threshold=-5.0)
    found = module.write_cleaned(lambda: told(noisy), tmp_path / "a", limits=limits, shown=SHOWN)
    assert found["planted_noise"]["auc"] == 1.0
    assert (
        found["planted_noise"]["removed"]["recall"] == found["planted_noise"]["removed"]["precision"] == 1.0
    )
    assert set(found["planted_noise"]["auc_by_modality"]) == {"text", "image", "multi_image", "video"}
    scores = np.random.default_rng(0).permutation(PAIRS) - 5.0
    other = module.write_cleaned(
        lambda: told(noisy, scores=scores), tmp_path / "b", limits=limits._replace(threshold=0.0), shown=SHOWN
    )
    assert 0.2 < other["planted_noise"]["auc"] < 0.8
    assert other["removed"] == 5
    assert sum(part["removed"] for part in other["domains"].values()) == 5


def test_without_planted_noise_nothing_is_said_of_it(tiny_folder, tmp_path):
    shards = write(tmp_path / "set", *(record(number, str(number)) for number in range(4)))
    rows = [{**row(number, float(number)), "shard": "", "key": f"s{number}"} for number in range(4)]
    found = data(tiny_folder, shards).write_cleaned(
        lambda: iter(rows), tmp_path / "out", limits=Limits(quantile=0.3), shown=SHOWN
    )
    assert found["planted_noise"] is None
    assert list(samples(tmp_path / "out/removed")) == ["s0"]


def test_the_same_scores_give_the_same_bytes(tiny_folder, noisy, tmp_path):
    for name in ("a", "b"):
        data(tiny_folder, noisy).write_cleaned(
            lambda: told(noisy), tmp_path / name, limits=Limits(z_score=-1.0), shown=SHOWN
        )
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_removed_is_a_result_and_nothing_kept_is_an_error(tiny_folder, noisy, tmp_path):
    module = data(tiny_folder, noisy)
    rows = lambda: told(noisy)  # noqa: E731
    found = module.write_cleaned(rows, tmp_path / "out", limits=Limits(threshold=-99.0), shown=SHOWN)
    assert found["removed"] == 0
    assert not (tmp_path / "out/removed").exists()
    assert lines(tmp_path / "out/removed.jsonl") == []
    before = (tmp_path / "out/summary.json").read_bytes()
    with pytest.raises(InputError, match=r"of 48 records none would be kept; .* \(threshold 99\)"):
        module.write_cleaned(rows, tmp_path / "out", limits=Limits(threshold=99.0), shown=SHOWN)
    assert (tmp_path / "out/summary.json").read_bytes() == before


def test_a_record_that_could_not_be_scored_is_listed_and_not_kept(tiny_folder, tmp_path):
    members = [(f"{n}.json", record(n, "" if n == 1 else "it is so")) for n in range(3)]
    write_tar(tmp_path / "set.tar", members)
    rows = [{**row(0, 1.0), "shard": "set.tar", "key": "0"}, {**bad(1), "shard": "set.tar", "key": "1"}]
    rows.append({**row(2, 2.0), "shard": "set.tar", "key": "2"})
    found = data(tiny_folder, tmp_path / "set.tar").write_cleaned(
        lambda: iter(rows), tmp_path / "out", limits=Limits(threshold=1.5), shown=SHOWN
    )
    assert (found["kept"], found["removed"], found["unreadable"]) == (1, 1, 1)
    assert [(line["key"], line["reasons"]) for line in lines(tmp_path / "out/removed.jsonl")] == [
        ("0", ["score 1 is below 1.5"]),
        ("1", ["cannot be read or scored: it is broken"]),
    ]
    assert list(samples(tmp_path / "out/kept")) == ["2"]


def test_keys_that_come_twice_are_numbered_anew(tiny_folder, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in "ab":
        write_tar(folder / f"{name}.tar", [("same.json", record(ord(name), f"it is {name}"))])
    rows = [{**row(number, 1.0), "shard": "", "key": "same"} for number in range(2)]
    data(tiny_folder, folder).write_cleaned(
        lambda: iter(rows), tmp_path / "out", limits=Limits(threshold=0.0), shown=SHOWN
    )
    kept = samples(tmp_path / "out/kept")
    assert [(key, sample.record["id"]) for key, sample in kept.items()] == [
        ("00000000", "97"),
        ("00000001", "98"),
    ]


def test_results_replace_earlier_ones_whole_and_nothing_else(tmp_path):
    folder = tmp_path / "out"
    with replaced_folder(folder) as partial:
        (partial / "summary.json").write_text("1")
        (partial / "old").write_text("")
    with pytest.raises(FileNotFoundError), replaced_folder(folder) as partial:
        (partial / "no/summary.json").write_text("2")
    assert (folder / "summary.json").read_text() == "1"
    (tmp_path / "..out.new.7.partial").mkdir()  # of a run that was killed
    with replaced_folder(folder) as partial:
        (partial / "summary.json").write_text("3")
    assert [path.name for path in folder.iterdir()] == ["summary.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("dear")
    with pytest.raises(InputError, match="holds no results of cleaning"), replaced_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine/notes.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "preference", "predict": "x"}, "only instruction shards are cleaned"),
        ({"kind": "instruction", "predict": "x.jsonl"}, "only shards are cleaned"),
        ({"kind": "instruction"}, "names nothing to score"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(options, message, tiny_folder):
    with pytest.raises(InputError, match=message):
        CleaningDataModule(str(tiny_folder), **options).setup("predict")
