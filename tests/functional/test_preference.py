# SPDX-License-Identifier: Apache-2.0
"""Losses and statistics of preference pairs, against hand-computed values and float64 references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.functional.preference import (
    centre_penalty,
    group_accuracy,
    is_correct,
    length_bias,
    pairwise_loss,
)

EXACT = 1e-6  # float32 arithmetic on numbers of order 1
DOUBLE = 1e-12

scores = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=20)


def _reference_loss(chosen, rejected, margin, smoothing):
    """−[(1 − ε) log σ(Δ) + ε log σ(−Δ)] pair by pair in float64, as log(1 + e^∓Δ)."""
    total = 0.0
    for c, r, m in zip(chosen, rejected, margin, strict=True):
        difference = c - r - m
        total += (1 - smoothing) * np.logaddexp(0, -difference) + smoothing * np.logaddexp(0, difference)
    return total / len(chosen)


def test_loss_of_two_pairs_by_hand():
    # Δ = 1 and −2: log(1 + e⁻¹) = 0.313262, log(1 + e²) = 2.126928; their mean is 1.220095
    loss = pairwise_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx(1.220095, abs=EXACT)


def test_loss_is_log_two_when_the_scores_are_equal():
    assert pairwise_loss(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(math.log(2), abs=EXACT)


@given(scores, st.floats(0, 3), st.floats(0, 0.49))
def test_loss_agrees_with_the_float64_reference(pairs, margin, smoothing):
    chosen, rejected = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    margins = torch.full_like(chosen, margin)
    loss = pairwise_loss(chosen, rejected, margin=margins, label_smoothing=smoothing)
    expected = _reference_loss(chosen.tolist(), rejected.tolist(), margins.tolist(), smoothing)
    assert loss.item() == pytest.approx(expected, rel=DOUBLE, abs=DOUBLE)


def test_gradient_raises_the_chosen_score_and_lowers_the_rejected_one():
    chosen, rejected = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    pairwise_loss(chosen, rejected).backward()
    # dL/dr_w = −σ(−Δ)/B = −1/6 at Δ = 0
    assert torch.allclose(chosen.grad, torch.full((3,), -1 / 6), atol=EXACT)
    assert torch.allclose(rejected.grad, torch.full((3,), 1 / 6), atol=EXACT)


def test_gradient_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]
    margin = torch.rand(4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda c, r: pairwise_loss(c, r, margin=margin, label_smoothing=0.1) + centre_penalty(c, r), pair
    )


def test_a_shift_of_all_scores_leaves_the_loss_alone_but_not_the_centre_penalty():
    chosen, rejected = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])
    assert pairwise_loss(chosen + 7, rejected + 7).item() == pytest.approx(
        pairwise_loss(chosen, rejected).item(), abs=EXACT
    )
    # (1.5² + 0.5²)/2 = 1.25
    assert centre_penalty(chosen, rejected).item() == pytest.approx(1.25, abs=EXACT)
    assert centre_penalty(chosen + 7, rejected + 7) > centre_penalty(chosen, rejected)


def test_a_margin_asks_for_more_distance():
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.0])
    with_margin = pairwise_loss(chosen, rejected, margin=torch.tensor([1.0]))
    assert with_margin.item() == pytest.approx(math.log(2), abs=EXACT)


def test_loss_stays_finite_at_extreme_scores():
    far = torch.tensor([1e4])
    assert pairwise_loss(far, -far).item() == 0.0
    assert pairwise_loss(-far, far).item() == pytest.approx(2e4)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        pairwise_loss(torch.zeros(1), torch.zeros(1), label_smoothing=smoothing)


@pytest.mark.parametrize("function", [is_correct, centre_penalty, length_bias])
def test_shapes_that_would_broadcast_are_refused_without_the_type_checker_too(function, unchecked_shapes):
    with pytest.raises(ValueError, match="shapes"):
        function(torch.zeros(2), torch.zeros(1))


def test_a_tie_and_a_nan_are_wrong():
    chosen = torch.tensor([1.0, 0.0, float("nan")])
    assert is_correct(chosen, torch.tensor([0.0, 0.0, 0.0])).tolist() == [True, False, False]


def test_length_bias_by_hand():
    # scores (1, 2, 3) against lengths (1, 2, 3): correlation 1, the longer one wins every time
    bias = length_bias(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2, 3]))
    assert bias.correlation.item() == pytest.approx(1.0, abs=EXACT)
    assert bias.longer_wins.item() == 1.0


def test_length_bias_changes_sign_when_shorter_responses_win():
    bias = length_bias(torch.tensor([-1.0, 2.0, -3.0]), torch.tensor([1, -2, 3]))
    assert bias.correlation < 0
    assert bias.longer_wins.item() == 0.0


def test_length_bias_agrees_with_numpy():
    generator = torch.Generator().manual_seed(1)
    score, length = torch.randn(50, generator=generator), torch.randint(-9, 9, (50,), generator=generator)
    expected = np.corrcoef(score.double().numpy(), length.double().numpy())[0, 1]
    assert length_bias(score, length).correlation.item() == pytest.approx(expected, abs=EXACT)


def test_length_bias_is_neutral_where_no_length_differs():
    bias = length_bias(torch.tensor([1.0, -1.0]), torch.tensor([0, 0]))
    assert (bias.correlation.item(), bias.longer_wins.item()) == (0.0, 0.5)


def test_accuracy_of_groups_counts_each_group_alone():
    correct = torch.tensor([True, False, True, True])
    assert group_accuracy(correct, torch.tensor([0, 0, 2, 2])) == {0: 0.5, 2: 1.0}
