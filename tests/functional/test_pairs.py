# SPDX-License-Identifier: Apache-2.0
"""Pairs say what the scores or the verdicts said, keep to the limits of length, and follow from the seed."""

from itertools import combinations
from random import Random

import pytest

from ixc_lightning.functional.pairs import (
    Preference,
    agreed,
    choose_pairs,
    comparisons,
    preferences_by_score,
)


def test_scores_prefer_every_higher_one_to_every_lower_one():
    # 3 > 1 by 2, 3 > 0 by 3, 1 > 0 by 1; the unknown one is in none
    assert preferences_by_score([1.0, 3.0, None, 0.0]) == [(0, 3, 1.0), (1, 0, 2.0), (1, 3, 3.0)]


def test_equal_scores_prefer_nothing():
    assert preferences_by_score([0.5, 0.5, 0.5]) == []
    assert preferences_by_score([]) == []


def test_a_gap_below_the_least_one_does_not_count():
    assert preferences_by_score([0.0, 1.0, 3.0], min_gap=2.0) == [(2, 0, 3.0), (2, 1, 2.0)]


def test_preferences_equal_those_of_two_plain_loops():
    draw = Random(3)
    scores = [draw.choice([None, 0.0, 0.25, 1.0, -2.0]) for _ in range(20)]
    expected = set()
    for i, a in enumerate(scores):
        for j, b in enumerate(scores):
            if a is not None and b is not None and a - b >= 0.3:
                expected.add((i, j, a - b))
    assert set(preferences_by_score(scores, min_gap=0.3)) == expected


@pytest.mark.parametrize(("scores", "gap"), [([float("nan")], 0.0), ([0.0], -1.0)])
def test_scores_that_cannot_be_compared_are_refused(scores, gap):
    with pytest.raises(ValueError, match=r"not a number|negative"):
        preferences_by_score(scores, min_gap=gap)


SCORES = [0.0, 2.0, 1.0, 4.0]


def test_the_best_is_taken_against_the_worst():
    chosen = choose_pairs(preferences_by_score(SCORES), [7] * 4)
    assert chosen == ([(3, 0, 4.0)], 0, 0)


def test_further_pairs_are_of_responses_that_are_in_none_yet():
    pairs = choose_pairs(preferences_by_score(SCORES), [7] * 4, count=3).pairs
    assert pairs[:2] == [(3, 0, 4.0), (1, 2, 1.0)]  # not 3 over 2, whose gap is larger
    assert pairs[2] == (3, 2, 3.0)  # now each is in one, and the larger gap counts


def test_no_preference_becomes_two_pairs():
    preferences = preferences_by_score(SCORES)
    pairs = choose_pairs(preferences, [7] * 4, count=100).pairs
    assert sorted(pairs) == sorted(preferences)


def test_a_chosen_response_that_is_too_long_or_too_short_is_left_out_and_counted():
    preferences = [Preference(0, 1, 1.0), Preference(2, 1, 1.0), Preference(3, 1, 1.0)]
    lengths = [21, 10, 4, 20]
    choice = choose_pairs(preferences, lengths, count=9, max_length_ratio=2.0, min_length_ratio=0.5)
    assert choice == ([(3, 1, 1.0)], 1, 1)  # 20 / 10 is allowed, 21 / 10 and 4 / 10 are not


def test_what_is_left_to_chance_follows_from_the_seed():
    preferences = preferences_by_score([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    drawn = [choose_pairs(preferences, [1] * 6, prefer="random", seed=f"0:{n}").pairs[0] for n in range(200)]
    assert set(drawn) == set(preferences)  # any right one against any wrong one
    again = [choose_pairs(preferences, [1] * 6, prefer="random", seed=f"0:{n}").pairs[0] for n in range(200)]
    assert again == drawn


def test_at_random_a_small_gap_comes_as_often_as_a_large_one():
    preferences = [Preference(0, 1, 1.0), Preference(2, 3, 100.0)]
    drawn = [choose_pairs(preferences, [1] * 4, prefer="random", seed=n).pairs[0].chosen for n in range(400)]
    assert 150 < drawn.count(0) < 250  # 200 ± 5 standard deviations of 10


@pytest.mark.parametrize(
    "options",
    [{"count": 0}, {"max_length_ratio": 0.0}, {"max_length_ratio": 1.0, "min_length_ratio": 2.0}],
)
def test_limits_that_leave_nothing_are_refused(options):
    with pytest.raises(ValueError, match=r"at least 1|no length ratio"):
        choose_pairs([], [], **options)


def test_without_a_reference_all_different_texts_are_compared_with_each_other():
    texts = ["a", "b", "a", "c", "d"]
    assert comparisons(texts, reference=None, count=100) == list(combinations([0, 1, 3, 4], 2))


def test_with_a_reference_only_it_is_compared():
    assert comparisons(["a", "b", "c", "b"], reference=2, count=9) == [(0, 2), (1, 2)]


def test_a_sample_that_says_what_the_reference_says_is_not_compared_with_it():
    assert comparisons(["a", "b", "a"], reference=2, count=9) == [(1, 2)]


def test_more_comparisons_than_wanted_are_a_choice_that_the_seed_fixes():
    texts = list("abcdef")
    some = [comparisons(texts, reference=None, count=4, seed=f"{n}") for n in range(20)]
    assert all(len(set(one)) == 4 and one == sorted(one) for one in some)
    assert len({tuple(one) for one in some}) > 10
    assert some == [comparisons(texts, reference=None, count=4, seed=f"{n}") for n in range(20)]


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a"]])
def test_nothing_is_compared_with_itself(texts):
    assert comparisons(texts, reference=None, count=9) == []


@pytest.mark.parametrize(
    ("straight", "swapped", "together"),
    [
        ("a", "b", "a"),
        ("b", "a", "b"),
        ("tie", "tie", "tie"),
        ("a", "a", "disagreement"),  # the first place won twice
        ("b", "b", "disagreement"),
        ("a", "tie", "disagreement"),
        ("tie", "b", "disagreement"),
    ],
)
def test_only_the_same_response_in_both_orders_is_preferred(straight, swapped, together):
    assert agreed(straight, swapped) == together
