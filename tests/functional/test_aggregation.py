# SPDX-License-Identifier: Apache-2.0
"""The loss of an update does not depend on how the update is divided."""

import pytest
import torch

from ixc_lightning.functional.aggregation import aggregate, denominator, token_weights

EXACT = 1e-6
MODES = ["token_mean", "sequence_mean", "sequence_sum"]
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False] * 3])


def _reference(losses, mask, mode):
    rows = [[loss for loss, real in zip(*row, strict=True) if real] for row in zip(losses, mask, strict=True)]
    rows = [row for row in rows if row]
    if mode == "token_mean":
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    return sum(sum(row) / (len(row) if mode == "sequence_mean" else 1) for row in rows) / len(rows)


def _loss(losses, mask, mode, total):
    return aggregate(losses, token_weights(mask, mode, total=total))


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_agrees_with_a_loop(mode):
    torch.manual_seed(0)
    losses = torch.randn(4, 3)
    expected = _reference(losses.tolist(), MASK.tolist(), mode)
    assert _loss(losses, MASK, mode, denominator(MASK, mode)).item() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_parts_sum_to_the_whole(mode):
    torch.manual_seed(0)
    losses = torch.randn(4, 3)
    total = denominator(MASK, mode)
    whole = _loss(losses, MASK, mode, total)
    parts = sum(
        _loss(losses[rows], MASK[rows], mode, total) for rows in (slice(0, 1), slice(1, 3), slice(3, 4))
    )
    assert parts.item() == pytest.approx(whole.item(), abs=EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_averaging_over_ranks_with_the_mean_denominator_gives_the_whole(mode):
    torch.manual_seed(0)
    losses = torch.randn(4, 3)
    whole = _loss(losses, MASK, mode, denominator(MASK, mode))
    mean = denominator(MASK, mode) / 2
    ranks = [_loss(losses[rows], MASK[rows], mode, mean) for rows in (slice(0, 2), slice(2, 4))]
    assert (sum(ranks) / 2).item() == pytest.approx(whole.item(), abs=EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_masked_tokens_get_exactly_no_gradient_whatever_they_hold(mode):
    losses = torch.randn(4, 3).masked_fill(~MASK, float("nan")).requires_grad_()
    loss = _loss(losses, MASK, mode, denominator(MASK, mode))
    loss.backward()
    assert loss.isfinite()
    assert (losses.grad[~MASK] == 0).all()
    assert (losses.grad[MASK] != 0).all()


def test_an_update_without_a_real_token_has_loss_zero():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert _loss(torch.randn(2, 3), nothing, "token_mean", denominator(nothing, "token_mean")).item() == 0.0


def test_shapes_that_would_broadcast_are_an_error(unchecked_shapes):
    with pytest.raises(ValueError, match="differ in shape"):
        aggregate(torch.zeros(2, 3), torch.zeros(1, 3))
