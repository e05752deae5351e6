# SPDX-License-Identifier: Apache-2.0
"""What a benchmark holds leaves the training data, for the reason that is counted; all else stays."""

import pytest

from ixc_lightning.datamodules.filters import Decontaminate
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.types import InputError
from tests.datamodules.filters.planted import COPIES, ENCODER, about, asking, digit_images, photo, saved
from tests.datamodules.samples import pair
from tests.digits import PAIRS, preference_data

LONG = (
    "A train leaves the station at noon and travels north at forty miles an hour until it stops"  # 18 words
)
SHORT = "Name a prime number above ten!"
GENERIC = "What is in the picture?"
CLIP = pair("video", seed=3)


def _write(folder, records):
    samples = []
    for number, record in enumerate(records):
        parts = [{"role": turn["role"], "content": list(turn["content"])} for turn in record.messages]
        raw = {"id": str(number), "source": "bench", "domain": "test", "messages": parts}
        raw |= {"chosen": "yes", "rejected": "no"}
        samples.append(Sample(str(number), raw, record.media))
    write_shards(samples, folder, kind="preference")
    return str(folder)


@pytest.fixture(scope="module")
def benchmark_shards(tmp_path_factory):
    records = [
        asking(LONG),
        asking(SHORT),
        about(saved(photo(0)), GENERIC),
        about(saved(digit_images(1)[0])),
        CLIP,
    ]
    return _write(tmp_path_factory.mktemp("bench") / "shards", records)


def _reason(benchmark_shards, record, **options):
    rule = Decontaminate(benchmark_shards, **options)
    kept = rule.keep(record, ENCODER)
    assert kept == (not rule.matches)
    return next(iter(rule.matches), None)


@pytest.mark.parametrize("question", [GENERIC, "Quite another question"])
def test_the_pixels_of_a_benchmark_are_found_whatever_is_said_of_them(benchmark_shards, question):
    record = about(saved(photo(0), "WEBP", lossless=True), question)
    assert _reason(benchmark_shards, record) == "same_picture"


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_a_picture_is_found(benchmark_shards, copy):
    assert _reason(benchmark_shards, about(COPIES[copy](photo(0)), "Another caption")) == "near_picture"


def test_a_picture_among_others_is_found(benchmark_shards):
    files = {"00.image": saved(photo(5)), "01.image": saved(photo(0))}
    assert _reason(benchmark_shards, pair("images", media=files)) == "same_picture"


def test_a_clip_of_a_benchmark_is_found(benchmark_shards):
    assert _reason(benchmark_shards, CLIP) == "same_picture"


def test_other_pictures_under_a_generic_question_stay(benchmark_shards):
    for picture in [*digit_images(60)[1:], photo(1), photo(2)]:
        assert _reason(benchmark_shards, about(saved(picture), GENERIC)) is None


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_the_same_words_are_found(benchmark_shards, text):
    assert _reason(benchmark_shards, asking(f"  {text.upper()} … ")) == "same_text"


def test_a_short_question_is_no_evidence_beside_a_picture(benchmark_shards):
    assert _reason(benchmark_shards, about(saved(photo(7)), SHORT)) is None
    assert _reason(benchmark_shards, about(saved(photo(7)), LONG)) == "same_text"


@pytest.mark.parametrize(
    ("words", "expected"),
    [(9, "overlap"), (8, None)],  # of 18 words: half of them, and less
)
def test_shared_runs_are_found_from_the_given_share_on(benchmark_shards, words, expected):
    question = "Consider this: " + " ".join(LONG.split()[:words]) + ", or does it not?"
    assert _reason(benchmark_shards, asking(question)) == expected
    assert _reason(benchmark_shards, asking(question), overlap=0.4) == "overlap"


def test_the_same_words_in_another_order_are_no_overlap(benchmark_shards):
    assert _reason(benchmark_shards, asking(" ".join(reversed(LONG.split())))) is None


def test_what_the_assistant_said_is_not_the_question(benchmark_shards):
    turns = (*asking("Hello").messages, {"role": "assistant", "content": [{"type": "text", "text": LONG}]})
    assert _reason(benchmark_shards, asking("", messages=(*turns, *asking("And now?").messages))) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngram": 0}, "ngram is 0"),
        ({"overlap": 0.0}, "overlap is 0.0"),
        ({"overlap": 1.1}, "overlap is 1.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Decontaminate("x", **options)


def test_benchmarks_that_are_not_there_are_named():
    with pytest.raises(InputError, match=r"/nowhere: no such shard"):
        Decontaminate("/nowhere").prepare(ENCODER)


def test_training_data_that_is_the_benchmark_itself_goes_and_the_reasons_are_counted(
    benchmark_shards, digits, tiny_folder
):
    held_out = str(digits / "preference/heldout")
    rules = [Decontaminate(held_out), Decontaminate(benchmark_shards)]
    data = preference_data(
        digits, tiny_folder, train=[held_out, str(digits / "preference/train")], filters=rules
    )
    data.setup("fit")
    assert len(data.dataset("train")) <= PAIRS
    dataset = data.dataset("train")
    assert not any("heldout" in dataset.place(number)[0] for number in range(len(dataset)))
    assert sum(rules[0].matches.values()) + sum(rules[1].matches.values()) == data.dropped["Decontaminate"]
    assert rules[0].details == dict(rules[0].matches)


def test_the_pictures_of_the_digits_training_data_are_not_those_held_out(digits, tiny_folder):
    rule = Decontaminate(str(digits / "preference/heldout"))
    preference_data(digits, tiny_folder, filters=[rule]).setup("fit")
    assert {reason for reason in rule.matches if "picture" in reason} == set()
