# SPDX-License-Identifier: Apache-2.0
"""Moments of parts merge to those of the whole, and whitening uses them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.functional.moments import (
    NO_MOMENTS,
    Moments,
    masked_moments,
    merge_moments,
    rescale,
    standardise_groups,
    whiten,
)

EXACT = 1e-5  # float32
DOUBLE = 1e-9

parts_of_numbers = st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=5)


def _moments(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    return masked_moments(values, torch.ones_like(values, dtype=torch.bool))


@given(parts_of_numbers)
def test_moments_of_parts_merge_to_those_of_the_whole(parts):
    whole = [number for part in parts for number in part]
    merged = merge_moments(_moments(part) for part in parts)
    assert merged.count == len(whole)
    if whole:
        assert merged.mean == pytest.approx(np.mean(whole), abs=DOUBLE)
        assert merged.std == pytest.approx(np.std(whole), abs=1e-6)


def test_masked_values_count_in_no_moment():
    values = torch.tensor([[1.0, float("nan")], [3.0, 7.0]])
    assert masked_moments(values, torch.tensor([[True, False], [True, False]])) == Moments(2.0, 2.0, 2.0)


def test_nothing_has_no_moments():
    assert masked_moments(torch.zeros(2), torch.zeros(2, dtype=torch.bool)) == NO_MOMENTS
    assert NO_MOMENTS.std == 0.0


def test_whitened_values_have_mean_zero_and_deviation_one_where_real_and_are_zero_elsewhere():
    values, mask = torch.randn(4, 6) * 3 + 5, torch.rand(4, 6) > 0.3
    out = whiten(values, mask, masked_moments(values, mask))
    assert out[mask].mean().item() == pytest.approx(0, abs=EXACT)
    assert out[mask].std(correction=0).item() == pytest.approx(1, abs=EXACT)
    assert not out[~mask].any()


def test_whitening_does_not_depend_on_a_shift_or_scale():
    values, mask = torch.randn(3, 5), torch.ones(3, 5, dtype=torch.bool)
    moved = values * 7 - 4
    first, second = (whiten(x, mask, masked_moments(x, mask)) for x in (values, moved))
    assert torch.allclose(first, second, atol=EXACT)


def test_rescaled_values_keep_their_mean():
    values, mask = torch.randn(3, 5) + 2, torch.ones(3, 5, dtype=torch.bool)
    out = rescale(values, mask, masked_moments(values, mask))
    assert out.mean().item() == pytest.approx(values.mean().item(), abs=EXACT)
    assert out.std(correction=0).item() == pytest.approx(1, abs=EXACT)


def test_equal_values_are_whitened_to_zero():
    values, mask = torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)
    assert not whiten(values, mask, masked_moments(values, mask)).any()


def test_each_group_is_standardised_by_its_own_moments():
    values, group = torch.tensor([1.0, 100.0, 3.0, 300.0, 8.0]), torch.tensor([0, 1, 0, 1, 2])
    moments = {0: Moments(2.0, 2.0, 2.0), 1: Moments(2.0, 200.0, 20000.0), 2: Moments(1.0, 5.0, 0.0)}
    # (1 − 2)/1, (100 − 200)/100, …; the third group has no spread and is only centred
    assert standardise_groups(values, group, moments).tolist() == pytest.approx([-1, -1, 1, 1, 3])
