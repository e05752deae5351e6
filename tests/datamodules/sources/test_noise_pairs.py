# SPDX-License-Identifier: Apache-2.0
"""Each pair has a record's own answer, and one that is right for another record or says nothing."""

import pytest

from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.datamodules.sources._noise import EMPTY
from ixc_lightning.datamodules.sources.noise_pairs import convert
from ixc_lightning.types import InputError
from tests.datamodules.test_contrast import record
from tests.datamodules.test_contrast import write as write_instructions


def text(messages):
    return messages[-1]["content"][0]["text"]


def read(folder, kind):
    found = ShardDataset(folder, kind=kind)
    return [found.record(number) for number in range(len(found))]


@pytest.mark.parametrize("empty_share", [0.0, 0.5, 1.0])
def test_chosen_is_the_own_answer_and_rejected_another_one(empty_share, digits, tmp_path):
    source = digits / "instruction/train"
    convert(str(source), str(tmp_path / "out"), empty_share=empty_share)
    before = {one.key: one for one in read(source, Kind.INSTRUCTION)}
    answers = {text(one.messages): one.answer for one in before.values()}
    pairs = read(tmp_path / "out", Kind.PREFERENCE)
    assert len(pairs) > len(before) * 0.8
    for pair in pairs:
        own = before[pair.key]
        assert (pair.messages, text(pair.chosen)) == (own.messages[:-1], text(own.messages))
        assert (pair.media, pair.answer, pair.domain) == (own.media, own.answer, own.domain)
        rejected = text(pair.rejected)
        assert rejected in EMPTY or answers[rejected] != own.answer or rejected != text(pair.chosen)
        assert rejected in {*EMPTY, *answers}
    share = sum(text(pair.rejected) in EMPTY for pair in pairs) / len(pairs)
    assert share == pytest.approx(empty_share, abs=0.25)


def test_a_record_without_another_answer_gives_no_pair(tmp_path):
    alone = record(0, "yes", "a"), record(1, "no", "b"), record(2, "one", "c"), record(3, "two", "c")
    shards = write_instructions(tmp_path / "set", *alone)
    assert convert(shards, str(tmp_path / "out"), empty_share=0.0).samples == 2


def test_the_same_seed_gives_the_same_bytes(digits, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert(str(digits / "instruction/heldout"), str(tmp_path / name), seed=seed)
    a, b, c = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_share_out_of_its_range_is_refused(tmp_path):
    write_shards([], tmp_path / "set", kind="instruction")
    with pytest.raises(InputError, match=r"empty_share is 1\.5"):
        convert(str(tmp_path / "set"), str(tmp_path / "out"), empty_share=1.5)
