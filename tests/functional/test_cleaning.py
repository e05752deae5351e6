# SPDX-License-Identifier: Apache-2.0
"""Robust z-scores, contrasts and lowest shares by hand, against NumPy and SciPy, and at the extremes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ixc_lightning.functional.cleaning import contrasts, lowest_share, robust_z_scores

TOLERANCE = 1e-12  # float64, a few operations
FLOAT32_TOLERANCE = 1e-6
VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


def one_group(values):
    return torch.zeros(len(values), dtype=torch.long)


def test_robust_z_scores_by_hand():
    # median 3, distances 2 1 0 1 97, MAD 1
    z = robust_z_scores(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]), one_group(range(5)))
    assert z.tolist() == pytest.approx([x / 1.482602218505602 for x in (-2, -1, 0, 1, 97)], abs=TOLERANCE)
    # an even number: median 2.5, distances 1.5 0.5 0.5 1.5, MAD 1
    z = robust_z_scores(torch.tensor([1, 2, 3, 4]), one_group(range(4)))
    assert z.tolist() == pytest.approx([x / 1.482602218505602 for x in (-1.5, -0.5, 0.5, 1.5)], abs=TOLERANCE)


def test_where_most_values_are_equal_the_mean_absolute_deviation_is_the_scale():
    # median 5, MAD 0, mean absolute deviation 10 / 4
    z = robust_z_scores(torch.tensor([5.0, 5.0, 5.0, -5.0]), one_group(range(4)))
    assert z.tolist() == pytest.approx([0, 0, 0, -10 / (2.5 * np.sqrt(np.pi / 2))], abs=TOLERANCE)


@pytest.mark.parametrize("values", [[7.0], [2.0, 2.0, 2.0], []])
def test_a_group_without_spread_has_z_scores_of_nought(values):
    assert robust_z_scores(torch.tensor(values), one_group(values)).tolist() == [0.0] * len(values)


def test_robust_z_scores_are_those_of_scipy_group_by_group():
    rng = np.random.default_rng(0)
    group = rng.integers(-2, 5, 400)
    values = rng.standard_cauchy(400) * (group + 3) + group
    z = robust_z_scores(torch.tensor(values), torch.tensor(group)).numpy()
    for number in np.unique(group):
        own = values[group == number]
        expected = (own - np.median(own)) / stats.median_abs_deviation(own, scale="normal")
        np.testing.assert_allclose(z[group == number], expected, atol=TOLERANCE, rtol=TOLERANCE)


@given(VALUES, st.floats(0.01, 100), st.floats(-100, 100), st.randoms())
def test_robust_z_scores_know_neither_scale_nor_order(values, scale, shift, random):
    values = torch.tensor(values, dtype=torch.float64).round(decimals=2)
    order = torch.tensor(random.sample(range(len(values)), len(values)))
    z = robust_z_scores(values, one_group(values))
    moved = robust_z_scores(values[order] * scale + shift, one_group(values))
    # Where values are equal but for rounding, their spread is rounding, too.
    spread = (values - values.median()).abs().median()
    if spread > 0.005:
        torch.testing.assert_close(moved, z[order], atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


def test_one_wild_value_of_a_thousand_moves_no_other_far():
    values = torch.linspace(-3, 3, 999, dtype=torch.float64)
    wild = torch.cat([values, torch.tensor([-1e300], dtype=torch.float64)])
    z = robust_z_scores(wild, one_group(wild))
    assert z[-1] < -1e299
    assert (z[:-1] - robust_z_scores(values, one_group(values))).abs().max() < 0.01


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(bad):
    values = torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match="not finite"):
        robust_z_scores(values, one_group(values))
    with pytest.raises(ValueError, match="not finite"):
        contrasts(values, torch.tensor([0, 0]), torch.tensor([True, False]))
    if np.isnan(bad):
        with pytest.raises(ValueError, match="no number"):
            lowest_share(values, 0.5)


def test_contrasts_by_hand():
    scores = torch.tensor([4.0, 1.0, 2.0, 7.0, -1.0])
    record, is_own = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([True, False, False, False, True])
    assert contrasts(scores, record, is_own).tolist() == [-1.0 - 1.0, 4.0 - (2.0 + 7.0) / 2]


@given(st.floats(-1e3, 1e3), st.integers(1, 5))
def test_a_contrast_does_not_feel_what_is_added_to_all_scores_of_a_prompt(shift, others):
    scores = torch.randn(1 + others, dtype=torch.float64)
    record = torch.zeros(1 + others, dtype=torch.long)
    is_own = torch.arange(1 + others) == 0
    plain = contrasts(scores, record, is_own)
    torch.testing.assert_close(
        contrasts(scores + shift, record, is_own), plain, atol=FLOAT32_TOLERANCE, rtol=0
    )
    assert plain.item() == pytest.approx(scores[0].item() - np.mean(scores[1:].tolist()), abs=TOLERANCE)


@pytest.mark.parametrize("is_own", [[True, True, False], [False, False, False], [True, False, True]])
def test_a_record_without_its_own_answer_or_without_others_is_refused(is_own):
    with pytest.raises(ValueError, match="one answer of its own, and at least one other"):
        contrasts(torch.zeros(3), torch.tensor([0, 0, 1]), torch.tensor(is_own))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, []),
        (0.19, []),
        (0.2, [1]),
        (0.4, [1]),
        (0.6, [1, 2, 4]),
        (0.8, [0, 1, 2, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_the_lowest_share_takes_equal_values_together_or_not_at_all(share, expected):
    values = torch.tensor([3.0, 1.0, 2.0, 9.0, 2.0])
    assert lowest_share(values, share).nonzero().flatten().tolist() == expected


def test_the_lowest_share_of_equal_values_is_none_of_them():
    assert not lowest_share(torch.ones(10), 0.9).any()
    assert lowest_share(torch.zeros(0), 0.5).tolist() == []
    assert lowest_share(torch.arange(100), 0.29).sum() == 29


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_its_range_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        lowest_share(torch.ones(3), share)
