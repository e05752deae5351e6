# SPDX-License-Identifier: Apache-2.0
"""Answers of other records: of the same domain and modality, never the own one, the same on every call."""

import pytest

from ixc_lightning.datamodules import ScoringDataModule
from ixc_lightning.datamodules.candidate_files import ShardCandidates
from ixc_lightning.datamodules.contrast import ContrastCandidates
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError
from tests.datamodules.broken import write_tar
from tests.datamodules.samples import message


def record(number, answer, domain="reading"):
    return {
        "id": str(number),
        "source": "test",
        "domain": domain,
        "messages": [message("user", f"{number}?"), message("assistant", answer)],
    }


def write(folder, *records):
    samples = [Sample(f"s{number}", record) for number, record in enumerate(records)]
    write_shards(samples, folder, kind="instruction", samples_per_shard=3)
    return str(folder)


def texts(candidates):
    return [answer[-1]["content"][0]["text"] for answer in candidates.answers]


def test_each_answer_comes_with_others_of_its_domain_and_modality(digits):
    shards = str(digits / "instruction/train")
    source, records = ContrastCandidates(shards, others=3), ShardDataset(shards, kind=Kind.INSTRUCTION)
    answers = {}
    for number in range(len(records)):
        one = records.record(number)
        answers.setdefault((one.domain, one.modality), set()).add(one.messages[-1]["content"][0]["text"])
    for number in range(len(source)):
        own, one = source.candidates(number), records.record(number)
        assert own.names == ["response", "other 1", "other 2", "other 3"]
        first, *others = texts(own)
        assert first == one.messages[-1]["content"][0]["text"]
        assert first not in others
        near = answers[one.domain, one.modality]
        if len(near) > 1:
            assert set(others) <= near
        assert own.record == one
        assert own.prompt == one.messages[:-1]


def test_the_draw_is_the_same_in_another_process_and_differs_between_records(digits):
    shards = str(digits / "instruction/train")
    one, other = (ContrastCandidates(shards, others=2) for _ in range(2))
    drawn = [texts(one.candidates(number))[1:] for number in range(len(one))]
    assert drawn == [texts(other.candidates(number))[1:] for number in range(len(other))]
    assert len(set(map(tuple, drawn))) > len(one) // 2


def test_where_the_own_domain_says_nothing_else_others_come_from_all(tmp_path):
    shards = write(
        tmp_path / "set",
        record(0, "yes", "a"),
        record(1, " yes", "a"),
        record(2, "no", "b"),
        record(3, "2", "c"),
    )
    found = texts(ContrastCandidates(shards, others=4).candidates(0))
    assert found[0] == "yes"
    assert set(found[1:]) == {"no", "2"}


def test_a_set_that_always_says_the_same_cannot_be_compared(tmp_path):
    shards = write(tmp_path / "set", record(0, "yes"), record(1, "yes"))
    with pytest.raises(InputError, match=r"'s0', messages: no other record has another answer.*data\.others"):
        ContrastCandidates(shards, others=2).candidates(0)


def test_a_bad_record_is_nobody_s_other_and_raises_at_its_own_turn(tmp_path):
    members = [("a.json", record(0, "one")), ("b.json", record(1, "")), ("c.json", record(2, "two"))]
    write_tar(tmp_path / "set.tar", members)
    source = ContrastCandidates(str(tmp_path / "set.tar"), others=8)
    assert set(texts(source.candidates(0))) == {"one", "two"}
    with pytest.raises(InputError, match=r"'b', messages\[1\]\.content: is empty"):
        source.candidates(1)


def test_the_number_of_others_is_part_of_what_is_scored(digits):
    shards = str(digits / "instruction/train")
    prints = {ContrastCandidates(shards, others=others).fingerprint for others in (1, 2)}
    assert len(prints | {ShardCandidates(shards, kind=Kind.INSTRUCTION).fingerprint}) == 3


@pytest.mark.parametrize(("others", "kind"), [(-1, "instruction"), (2, "preference")])
def test_others_are_for_instruction_shards(others, kind, tiny_folder):
    with pytest.raises(InputError, match=r"data\.others is"):
        ScoringDataModule(str(tiny_folder), kind=kind, others=others)
