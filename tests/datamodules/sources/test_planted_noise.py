# SPDX-License-Identifier: Apache-2.0
"""Each kind of noise is what it says; all else stays as it was, and a scorer cannot tell by anything else."""

import json

import pytest

from ixc_lightning.datamodules.conversations import candidates_of
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.sources._noise import EMPTY, NOISES
from ixc_lightning.datamodules.sources.planted_noise import convert
from ixc_lightning.types import InputError
from tests.datamodules.test_contrast import record
from tests.digits import PAIRS


def read(folder):
    found = SampleShards(folder, kind="instruction")
    return [found.sample(number) for number in range(len(found))]


def planted(digits, tmp_path, **options):
    """Samples before and after, with their noise."""
    source = digits / "instruction/train"
    convert(str(source), str(tmp_path / "out"), **options)
    return [
        (before, after, after.record["answer"]["noise"])
        for before, after in zip(read(source), read(tmp_path / "out"), strict=True)
    ]


def question(sample):
    return [part.get("text") for part in sample.record["messages"][0]["content"]]


def response(sample):
    content = sample.record["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def test_the_share_is_spoilt_and_all_else_is_as_it_was(digits, tmp_path):
    triples = planted(digits, tmp_path, share=0.5)
    assert sum(noise is not None for _, _, noise in triples) == PAIRS // 2
    assert {noise for _, _, noise in triples} == {None, *NOISES}
    for before, after, noise in triples:
        label = {"noise": noise, "answer": before.record["answer"]}
        assert after.key == before.key
        assert after.record["answer"] == label
        if noise is None:
            assert after == before._replace(record={**before.record, "answer": label})
        if noise != "mismatched":
            assert after.media == before.media
            assert after.record["messages"][:-1] == before.record["messages"][:-1]


def test_a_hallucinated_answer_is_right_for_another_record(digits, tmp_path):
    triples = planted(digits, tmp_path, share=0.9, kinds=["hallucinated"])
    truths = {}
    for before, _, _ in triples:
        truths.setdefault(response(before), set()).add(before.record["answer"])
    spoilt = [(before, after) for before, after, noise in triples if noise]
    assert len(spoilt) > PAIRS // 2
    for before, after in spoilt:
        assert truths[response(after)] - {before.record["answer"]}
        assert response(after) != response(before)


def test_an_empty_answer_says_nothing(digits, tmp_path):
    triples = planted(digits, tmp_path, share=0.5, kinds=["empty"])
    assert {response(after) for _, after, noise in triples if noise} == set(EMPTY)


def test_mismatched_media_are_those_of_another_record_of_the_same_modality(digits, tmp_path):
    triples = planted(digits, tmp_path, share=0.9, kinds=["mismatched"])
    sources = {tuple(sorted(before.media.values())): before for before, _, _ in triples}
    spoilt = [(before, after) for before, after, noise in triples if noise]
    assert len(spoilt) > PAIRS // 4
    for before, after in spoilt:
        donor = sources[tuple(sorted(after.media.values()))]
        assert donor.record["answer"] != before.record["answer"]
        assert after.media != before.media
        assert (response(after), question(after)[-1]) == (response(before), question(before)[-1])
    assert all(before.media for before, _ in spoilt)  # questions of text alone have none to change


def test_an_answer_to_the_same_question_comes_before_one_of_the_domain(tmp_path):
    def asked(number, text, answer):
        fields = record(number, answer)
        fields["messages"][0]["content"] = text
        return Sample(f"s{number}", {**fields, "answer": answer})

    samples = [asked(0, "What is it?", "a dog"), asked(1, "What is it?", "a cat")]
    samples += [asked(number, "Is it?", "yes") for number in range(2, 40)]
    write_shards(samples, tmp_path / "set", kind="instruction")
    convert(str(tmp_path / "set"), str(tmp_path / "out"), share=0.99, kinds=["hallucinated"])
    found = [response(sample) for sample in read(tmp_path / "out")[:2]]
    assert set(found) <= {"a dog", "a cat"}
    assert found != ["a dog", "a cat"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(digits, tmp_path):
    source = str(digits / "instruction/heldout")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert(source, str(tmp_path / name), share=0.4, seed=seed)
    a, b, c = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_scorer_does_not_see_the_label(digits, tmp_path):
    convert(str(digits / "instruction/heldout"), str(tmp_path / "out"), share=0.5)
    found = SampleShards(tmp_path / "out", kind="instruction")
    for number in range(len(found)):
        given = candidates_of(found.record(number))
        seen = json.dumps([given.prompt, given.answers, given.names])
        assert "noise" not in seen
        assert not any(noise in seen for noise in NOISES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.0}, "share is 1.0"),
        ({"kinds": []}, "name some of hallucinated, empty, mismatched"),
    ],
)
def test_settings_out_of_their_range_are_refused(options, message, digits, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(str(digits / "instruction/heldout"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_preference_shards_are_refused(digits, tmp_path):
    with pytest.raises(InputError, match="instruction data"):
        convert(str(digits / "preference/heldout"), str(tmp_path / "out"))
