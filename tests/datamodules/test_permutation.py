# SPDX-License-Identifier: Apache-2.0
"""The shuffle that is a function: a permutation of any size, another for every key, without a pattern."""

from collections import Counter

import numpy as np
import pytest

from ixc_lightning.datamodules.permutation import key_of, mix, permute

SIGMAS = 4.5
"""Standard deviations that a count may lie off its expectation; a count here fails once in 10⁴ runs."""


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_every_place_is_hit_once(size):
    assert sorted(permute(np.arange(size), size, key_of("a", size))) == list(range(size))


def test_a_place_goes_where_it_goes_in_any_company():
    whole = permute(np.arange(1000), 1000, 7)
    assert permute(np.array([999, 3, 3]), 1000, 7).tolist() == [whole[999], whole[3], whole[3]]
    assert permute(np.array([], dtype=np.int64), 1000, 7).tolist() == []


def test_all_orders_of_four_are_as_likely():
    runs = 6000
    counts = Counter(tuple(permute(np.arange(4), 4, key_of(run))) for run in range(runs))
    expected = runs / 24
    assert len(counts) == 24
    assert max(abs(count - expected) for count in counts.values()) < SIGMAS * expected**0.5


def test_where_a_place_goes_is_uniform_and_neighbours_do_not_stay_together():
    size, runs = 50, 1500
    moved = np.array([permute(np.arange(size), size, key_of("u", run)) for run in range(runs)])
    expected = runs / size
    for place in (0, 1, size - 1):
        counts = np.bincount(moved[:, place], minlength=size)
        assert abs(counts - expected).max() < SIGMAS * expected**0.5
    follows = np.mean(moved[:, 1:] == moved[:, :-1] + 1)
    pairs = runs * (size - 1)
    assert abs(follows - 1 / size) < SIGMAS * (1 / size / pairs) ** 0.5


def test_a_billion_places_need_no_list():
    places = np.array([0, 1, 10**9 - 1])
    moved = permute(places, 10**9, key_of("large"))
    assert len(set(moved.tolist())) == 3
    assert moved.max() < 10**9


@pytest.mark.parametrize("place", [-1, 10])
def test_a_place_outside_is_refused(place):
    with pytest.raises(IndexError, match=r"range\(10\)"):
        permute(np.array([place]), 10, 0)


def test_keys_differ_by_every_part_and_are_the_same_everywhere():
    assert key_of(1, 23) != key_of(12, 3) != key_of("12", 4)
    assert key_of(0, "epoch", 3) == 0xFCF2A36505DA014B
    assert mix(np.array([0], dtype=np.uint64))[0] == np.uint64(
        0xE220A8397B1DCDAF
    )  # first output of SplitMix64
