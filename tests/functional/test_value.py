# SPDX-License-Identifier: Apache-2.0
"""Value losses are Eq. 4 as printed, clipped or not; explained variance has its fixed points."""

import pytest
import torch

from ixc_lightning.functional.value import explained_variance, value_losses

EXACT = 1e-6
DOUBLE = 1e-12
MASK = torch.tensor([[True, True, True, False]])


def _reference(value, old, target, clip):
    loss = (value - target) ** 2
    return loss if clip is None else max(loss, (min(max(value, old - clip), old + clip) - target) ** 2)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_losses_agree_with_a_loop_in_float64(clip):
    torch.manual_seed(0)
    values, old, returns = torch.randn(3, 2, 9, dtype=torch.float64)
    triples = zip(*(x.flatten().tolist() for x in (values, old, returns)), strict=True)
    got = value_losses(values, old, returns, value_clip=clip)
    assert got.flatten().tolist() == pytest.approx(
        [_reference(*triple, clip) for triple in triples], abs=DOUBLE
    )


def test_the_gradient_moves_a_value_to_its_return_and_stops_beyond_the_clip():
    values = torch.tensor([[0.0, 1.0]], requires_grad=True)
    value_losses(values, torch.zeros(1, 2), torch.full((1, 2), 2.0), value_clip=0.5).sum().backward()
    # 2 (V − R) = −4; the second has moved by 1 already, so the clipped (0.5 − 2)² is the larger loss
    assert values.grad.tolist() == [[-4.0, 0.0]]


def test_a_clip_of_zero_is_an_error():
    with pytest.raises(ValueError, match="must be positive"):
        value_losses(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), value_clip=0.0)


def test_shapes_that_would_broadcast_are_an_error(unchecked_shapes):
    with pytest.raises(ValueError, match="differ"):
        value_losses(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3))


def test_a_perfect_critic_explains_all_a_constant_nothing_and_a_wrong_one_less():
    returns = torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    assert explained_variance(returns, returns, MASK).item() == 1.0
    assert explained_variance(torch.full((1, 4), 7.0), returns, MASK).item() == pytest.approx(0, abs=EXACT)
    assert explained_variance(-returns, returns, MASK).item() == pytest.approx(-3, abs=EXACT)


def test_returns_that_do_not_vary_are_explained_by_nobody():
    assert explained_variance(torch.randn(1, 4), torch.ones(1, 4), MASK).item() == 0.0
