# SPDX-License-Identifier: Apache-2.0
"""Pairs from ratings: which is best, which ties and gaps leave nothing, and that a seed decides the rest."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.datamodules.sources._drafts import Dropped
from ixc_lightning.datamodules.sources._pairs import (
    all_pairs,
    best_and_lower,
    best_and_worst,
    mean_rating,
    to_number,
)

RATINGS = st.lists(st.none() | st.integers(1, 5).map(float), min_size=2, max_size=6)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("4", 4.0),
        (" 3.5 ", 3.5),
        (2, 2.0),
        ("N/A", None),
        (None, None),
        ("nan", None),
        ("inf", None),
        ([], None),
    ],
)
def test_a_rating_is_a_number_or_nothing(value, number):
    assert to_number(value) == number


def test_the_mean_rating_leaves_out_what_is_no_number():
    assert mean_rating(["5", "N/A", "4", None]) == 4.5
    assert mean_rating(["N/A"]) is None


def test_best_and_worst_are_the_first_of_equals():
    assert best_and_worst([3.0, 5.0, None, 1.0, 5.0, 1.0], min_gap=0.0) == (1, 3)


@pytest.mark.parametrize(
    ("ratings", "min_gap", "reason"),
    [
        ([4.0, 4.0], 0.0, "the ratings are equal"),
        ([4.0, 3.5], 1.0, "the ratings are too close"),
        ([4.0, None], 0.0, "fewer than two responses have ratings"),
        ([], 0.0, "fewer than two responses have ratings"),
    ],
)
def test_what_makes_no_pair_has_a_reason(ratings, min_gap, reason):
    for rule in (best_and_worst, all_pairs, lambda *a, **k: best_and_lower(*a, seed="", **k)):
        with pytest.raises(Dropped, match=reason):
            rule(ratings, min_gap=min_gap)


def test_a_gap_that_is_just_wide_enough_makes_a_pair():
    assert best_and_worst([3.0, 4.0], min_gap=1.0) == (1, 0)
    assert all_pairs([3.0, 4.0], min_gap=1.0) == [(1, 0)]
    assert best_and_lower([3.0, 4.0], min_gap=1.0, seed="") == (1, 0)


@given(RATINGS, st.sampled_from([0.0, 1.0, 2.0]))
def test_all_pairs_are_those_of_a_double_loop(ratings, min_gap):
    expected = {
        (better, worse)
        for better, high in enumerate(ratings)
        for worse, low in enumerate(ratings)
        if high is not None and low is not None and high > low and high - low >= min_gap
    }
    try:
        found = all_pairs(ratings, min_gap=min_gap)
    except Dropped:
        found = []
    assert set(found) == expected
    assert len(found) == len(expected)


def test_the_lower_response_is_drawn_evenly_and_by_the_seed_alone():
    ratings = [1.0, 5.0, 2.0, 5.0, 3.0]
    draws = Counter(best_and_lower(ratings, min_gap=0.0, seed=str(seed)) for seed in range(3000))
    assert set(draws) == {(1, 0), (1, 2), (1, 4)}
    assert min(draws.values()) > 900
    assert {best_and_lower(ratings, min_gap=0.0, seed="7") for _ in range(9)} == {
        best_and_lower(ratings, min_gap=0.0, seed="7")
    }
