# SPDX-License-Identifier: Apache-2.0
"""Resampling of a benchmark's items: what is drawn, what stays together, and what the interval says."""

import math

import pytest
import torch

from ixc_lightning.functional.bootstrap import interval, resample_weights, sign_probability, weighted_share

CLOSE = 1e-12  # float64, a handful of sums
RESAMPLES = 4000
SPREAD = 0.15  # relative, of a standard deviation from 4,000 resamples: several times its own error of 1 %


def drawn(stratum, unit, resamples=RESAMPLES, seed=0):
    return resample_weights(torch.tensor(stratum), torch.tensor(unit), resamples=resamples, seed=seed)


def test_every_stratum_keeps_its_size_in_every_resample():
    weights = drawn([0] * 5 + [1] * 3 + [2], range(9), resamples=50)
    assert (weights[:, :5].sum(dim=1) == 5).all()
    assert (weights[:, 5:8].sum(dim=1) == 3).all()
    assert (weights[:, 8] == 1).all()
    assert len(weights.unique(dim=0)) > 1


def test_items_of_a_unit_come_together_wherever_they_stand():
    weights = drawn([0] * 6, [7, 3, 7, 5, 3, 7], resamples=50)
    assert torch.equal(weights[:, 0], weights[:, 2])
    assert torch.equal(weights[:, 0], weights[:, 5])
    assert torch.equal(weights[:, 1], weights[:, 4])
    # As many units are drawn as there are.
    assert (weights[:, [0, 1, 3]].sum(dim=1) == 3).all()


def test_the_same_seed_draws_the_same_and_another_one_something_else():
    first = drawn([0] * 9, range(9), resamples=5)
    assert torch.equal(first, drawn([0] * 9, range(9), resamples=5))
    assert not torch.equal(first, drawn([0] * 9, range(9), resamples=5, seed=1))


def test_the_spread_of_a_mean_is_that_of_the_binomial():
    # 30 of 100 right: the standard error of the plug-in distribution is √(0.3 · 0.7 / 100).
    values = torch.tensor([1.0] * 30 + [0.0] * 70, dtype=torch.float64)
    means = weighted_share(values, drawn([0] * 100, range(100)), torch.ones(100, dtype=torch.bool))
    expected = math.sqrt(0.3 * 0.7 / 100)
    assert means.std().item() == pytest.approx(expected, rel=SPREAD)
    assert means.mean().item() == pytest.approx(0.3, abs=4 * expected / math.sqrt(RESAMPLES))
    low, high = interval(means)
    assert (low, high) == pytest.approx((0.3 - 1.96 * expected, 0.3 + 1.96 * expected), abs=0.015)


@pytest.mark.parametrize(("stratum", "unit", "resamples"), [([0, 0], [0], 3), ([], [], 3), ([0], [0], 0)])
def test_what_cannot_be_resampled_is_refused(stratum, unit, resamples, unchecked_shapes):
    with pytest.raises(ValueError, match=r"unit per item|not possible"):
        resample_weights(
            torch.tensor(stratum, dtype=torch.long),
            torch.tensor(unit, dtype=torch.long),
            resamples=resamples,
            seed=0,
        )


def test_a_share_of_nothing_is_no_number_and_others_are_weighted():
    values = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    # (1 + 0.5)/2; 2/2; 0/0
    share = weighted_share(values, weights, torch.tensor([True, True, False]))
    assert share[:2].tolist() == pytest.approx([0.75, 1.0], abs=CLOSE)
    assert share[2].isnan()


def test_the_interval_leaves_out_what_is_no_number():
    values = torch.tensor([float("nan"), *range(101)], dtype=torch.float64)
    assert interval(values) == pytest.approx((2.5, 97.5), abs=CLOSE)
    assert interval(values, level=0.5) == pytest.approx((25.0, 75.0), abs=CLOSE)
    with pytest.raises(ValueError, match="level"):
        interval(values, level=1.0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        # 2 (0 + 1)/(4 + 1); the same with the signs turned; 2 (2 + 1)/(4 + 1) > 1; all zero
        ([1.0, 2.0, 3.0, 4.0], 0.4),
        ([-1.0, -2.0, -3.0, -4.0], 0.4),
        ([-1.0, -2.0, 3.0, 4.0], 1.0),
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([1.0, 2.0, 3.0, 4.0, float("nan")], 0.4),
    ],
)
def test_the_probability_of_the_other_sign_by_hand(differences, expected):
    assert sign_probability(torch.tensor(differences, dtype=torch.float64)) == pytest.approx(expected)
