# SPDX-License-Identifier: Apache-2.0
"""Repetitions leave the training data, the first one stays, and what only looks alike stays too."""

import numpy as np
import pytest

from ixc_lightning.datamodules.filters import NearDuplicates
from ixc_lightning.datamodules.filters.near_duplicates import BANDS, ROWS, _jaccard
from ixc_lightning.types import InputError
from tests.datamodules.filters.planted import COPIES, ENCODER, about, asking, digit_images, photo, saved
from tests.datamodules.samples import instruction, message, pair
from tests.digits import preference_data

LONG = " ".join(f"word{number}" for number in range(40))


def _kept(*records, **options):
    """Keys of the records that stay; each gets its place as key."""
    rule = NearDuplicates(**options)
    return [
        place
        for place, record in enumerate(records)
        if rule.keep(type(record)(**{**record.__dict__, "key": str(place)}), ENCODER)
    ]


def _changed(text, place, word="other"):
    words = text.split()
    words[place] = word
    return " ".join(words)


@pytest.mark.parametrize("copy", COPIES)
def test_the_same_pair_about_a_copy_of_the_picture_goes(copy):
    picture = photo(0)
    assert _kept(about(saved(picture)), about(COPIES[copy](picture)), about(saved(photo(1)))) == [0, 2]


def test_a_caption_with_other_case_and_punctuation_goes():
    data = saved(photo(0))
    assert _kept(about(data, "What is in it?"), about(data, " what is IN it")) == [0]


def test_a_word_of_a_long_caption_may_change_and_of_a_short_one_not():
    data = saved(photo(0))
    assert _kept(about(data, LONG), about(data, _changed(LONG, 20))) == [0]
    assert _kept(about(data, "What is in it?"), about(data, "Who is in it?")) == [0, 1]


def test_no_change_is_allowed_at_a_similarity_of_one():
    assert _kept(asking(LONG), asking(_changed(LONG, 20)), asking(LONG.upper()), similarity=1.0) == [0, 1]


def test_unrelated_digits_under_the_same_question_stay():
    records = [about(saved(picture), "Which digit is it?") for picture in digit_images(150)]
    assert _kept(*records) == list(range(150))


def test_other_responses_to_the_same_long_prompt_stay():
    answers = [(message("assistant", text),) for text in ("Yes, it is.", "It never was.")]
    assert _kept(*(asking(LONG, chosen=answer) for answer in answers)) == [0, 1]


def test_the_same_pair_the_other_way_round_stays():
    record = asking(LONG)
    assert _kept(record, asking(LONG, chosen=record.rejected, rejected=record.chosen)) == [0, 1]


def test_the_same_pictures_in_another_order_stay():
    media = [saved(photo(0)), saved(photo(1))]
    first, second = (
        pair("images", media=dict(zip(("00.image", "01.image"), order, strict=True)))
        for order in (media, media[::-1])
    )
    assert _kept(first, second, first) == [0, 1]


def test_clips_and_instructions_are_compared_too():
    clips = [instruction("video", seed=seed) for seed in (0, 1, 0)]
    assert _kept(*clips) == [0, 1]
    assert _kept(pair("text"), instruction("text")) == [0, 1]


def test_a_record_that_stayed_stays_when_it_is_asked_for_again():
    rule = NearDuplicates()
    first, second = asking(LONG, key="a"), asking(LONG, key="b")
    for _ in range(2):
        assert rule.keep(first, ENCODER)
        assert not rule.keep(second, ENCODER)


def test_a_shard_that_is_copied_goes_as_a_whole_and_the_first_stays(digits, tiny_folder, tmp_path):
    shard = next((digits / "preference/train").glob("*.tar"))
    copy = tmp_path / "copy.tar"
    copy.write_bytes(shard.read_bytes())
    alone = preference_data(digits, tiny_folder, train=[str(shard)], filters=[NearDuplicates()])
    alone.setup("fit")
    both = preference_data(digits, tiny_folder, train=[str(shard), str(copy)], filters=[NearDuplicates()])
    both.setup("fit")
    kept = [
        [data.dataset("train").place(n) for n in range(len(data.dataset("train")))] for data in (alone, both)
    ]
    assert kept[0] == kept[1]
    assert {place[0] for place in kept[1]} == {str(shard)}


@pytest.mark.parametrize("similarity", [0.0, 1.01, float("nan")])
def test_a_similarity_that_is_none_is_refused(similarity):
    with pytest.raises(InputError, match=r"NearDuplicates\.similarity is"):
        NearDuplicates(similarity)


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9])
def test_candidates_are_found_with_the_probability_that_is_claimed(similarity):
    rule, trials, total = NearDuplicates(), 400, 190
    rng = np.random.default_rng(0)
    shared = round(2 * total * similarity / (1 + similarity))  # of each of the two sets
    found = 0
    for _ in range(trials):
        values = rng.choice(1 << 32, 2 * total - shared, replace=False).astype(np.uint32)
        one, other = values[:total], values[total - shared :]
        assert _jaccard(np.unique(one), np.unique(other)) == pytest.approx(similarity, abs=0.02)
        found += bool(set(rule._signature(one)) & set(rule._signature(other)))
    exact = shared / (2 * total - shared)
    claimed = 1 - (1 - exact**ROWS) ** BANDS
    assert found / trials == pytest.approx(claimed, abs=4 * (claimed * (1 - claimed) / trials) ** 0.5 + 0.005)
