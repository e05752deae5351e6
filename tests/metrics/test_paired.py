# SPDX-License-Identifier: Apache-2.0
"""Two models on the same items: what pairs with what, and how sure a difference is."""

import random

import pytest

from ixc_lightning.metrics import VideoRewardBench, VLRewardBench
from ixc_lightning.metrics.paired import match_items, paired_differences
from tests.metrics.scored import CLOSE, figures, item, numbered

GROUPS = ("general", "hallucination", "reasoning")


def _items(right, group="safety"):
    return numbered(*(item(group, float(one), 0.5) for one in right))


def _pairs(first, second):
    return match_items(_items(first), _items(second)).pairs


def test_items_pair_by_their_digests_whatever_their_order():
    first = _items([1, 0, 1])
    second = [one._replace(row=9 - one.row) for one in reversed(_items([0, 0, 1]))]
    matched = match_items(first, second)
    assert [(own.row, other.row) for own, other in matched.pairs] == [(0, 9), (1, 8), (2, 7)]
    assert [other.chosen for _, other in matched.pairs] == [(0.0,), (0.0,), (1.0,)]
    assert (matched.only_first, matched.only_second) == ([], [])


def test_items_of_one_file_alone_are_told():
    first, second = _items([1, 1, 1]), _items([1, 1, 1, 1])[1:]
    matched = match_items(first, second)
    assert [own.row for own, _ in matched.pairs] == [1, 2]
    assert [one.row for one in matched.only_first] == [0]
    assert [one.row for one in matched.only_second] == [3]


def test_items_with_the_same_texts_pair_in_their_order():
    first = [one._replace(digest="same") for one in _items([1, 0, 1])]
    matched = match_items(first, first[:2])
    assert [(own.row, other.row) for own, other in matched.pairs] == [(0, 0), (1, 1)]
    assert [one.row for one in matched.only_first] == [2]


def test_figures_and_difference_are_those_of_the_common_items():
    first, second = [1, 0, 1, 0], [1, 1, 1, 0]
    one = paired_differences(VideoRewardBench(), _pairs(first, second), resamples=200, seed=0)[
        "official_overall"
    ]
    assert (one.first, one.second, one.difference) == pytest.approx((0.5, 0.75, 0.25), abs=CLOSE)
    assert one.low <= one.difference <= one.high


def test_the_same_model_has_no_difference_and_no_uncertainty():
    found = paired_differences(VideoRewardBench(), _pairs([1, 0] * 20, [1, 0] * 20), resamples=100, seed=0)
    one = found["official_overall"]
    assert (one.difference, one.low, one.high, one.p) == (0.0, 0.0, 0.0, 1.0)


def test_exchanging_the_models_changes_the_sign_alone():
    draw = random.Random(0)
    right = [[draw.random() < share for _ in range(60)] for share in (0.5, 0.7)]
    there, back = (
        paired_differences(VideoRewardBench(), _pairs(*order), resamples=300, seed=0)["official_overall"]
        for order in (right, right[::-1])
    )
    assert back.difference == pytest.approx(-there.difference, abs=CLOSE)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=CLOSE)
    assert back.p == there.p


def test_pairing_is_surer_than_two_intervals_apart():
    # B is right wherever A is, and on 6 items more: of 200 items no interval of either figure is that narrow.
    first = [1, 0] * 100
    second = [one or n < 12 for n, one in enumerate(first)]
    found = paired_differences(VideoRewardBench(), _pairs(first, second), resamples=1000, seed=0)
    one = found["official_overall"]
    assert one.difference == pytest.approx(0.03, abs=CLOSE)
    assert one.low > 0
    assert one.high - one.low < 0.06
    assert one.p < 0.05


def test_a_difference_that_is_chance_is_not_called_sure():
    draw = random.Random(3)
    right = [[draw.random() < 0.5 for _ in range(50)] for _ in range(2)]
    one = paired_differences(VideoRewardBench(), _pairs(*right), resamples=500, seed=0)["official_overall"]
    assert one.low < 0 < one.high
    assert one.p > 0.05


def test_every_figure_of_the_benchmark_is_compared():
    items = numbered(*(item(group, 1.0, 0.0) for group in GROUPS for _ in range(3)))
    found = paired_differences(VLRewardBench(), match_items(items, items).pairs, resamples=5, seed=0)
    assert found.keys() == figures(VLRewardBench(), items).keys()
