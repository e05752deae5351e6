# SPDX-License-Identifier: Apache-2.0
"""The clipped loss agrees with a float64 loop, pushes the right way, and stops where it is clipped."""

import math

import pytest
import torch

from ixc_lightning.functional.aggregation import aggregate, token_weights
from ixc_lightning.functional.policy_loss import ppo_clip_losses, probability_ratio, ratio_statistics

EXACT = 1e-6
DOUBLE = 1e-12


def _reference(new, old, advantage, clip, dual):
    """−min(ρA, clip(ρ)A) of one token, bounded by −cA where A < 0."""
    ratio = math.exp(new - old)
    loss = -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
    return min(loss, -dual * advantage) if dual is not None and advantage < 0 else loss


@pytest.mark.parametrize("dual", [None, 3.0])
def test_losses_agree_with_a_loop_in_float64(dual):
    torch.manual_seed(0)
    old, advantages = -3 * torch.rand(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    new = old + torch.randn(3, 7, dtype=torch.float64)
    got = ppo_clip_losses(new, old, advantages, ratio_clip=0.2, dual_clip=dual)
    triples = zip(new.flatten().tolist(), old.flatten().tolist(), advantages.flatten().tolist(), strict=True)
    expected = [_reference(*triple, 0.2, dual) for triple in triples]
    assert got.flatten().tolist() == pytest.approx(expected, abs=DOUBLE)


def test_four_tokens_by_hand():
    # ratios e^0.1 = 1.105 inside; e^0.5 clipped to 1.2 when it pays, not when it costs; e^−0.5 = 0.607
    new = torch.tensor([[0.1, 0.5, 0.5, -0.5]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    got = ppo_clip_losses(new, torch.zeros(1, 4), advantages, ratio_clip=0.2)
    assert got[0].tolist() == pytest.approx([-1.105171, -1.2, 1.648721, 0.8], abs=EXACT)


def test_at_ratio_one_the_loss_is_minus_the_mean_advantage():
    logprobs, advantages = -torch.rand(3, 5), torch.randn(3, 5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    weights = token_weights(mask, "token_mean", total=15.0)
    loss = aggregate(ppo_clip_losses(logprobs, logprobs, advantages, ratio_clip=0.2), weights)
    assert loss.item() == pytest.approx(-advantages.mean().item(), abs=EXACT)


def test_the_loss_falls_when_a_good_token_gets_likelier_and_a_bad_one_less_likely():
    logprobs = torch.full((1, 2), -1.0, requires_grad=True)
    advantages = torch.tensor([[2.0, -3.0]])
    ppo_clip_losses(logprobs, logprobs.detach(), advantages, ratio_clip=0.2).sum().backward()
    assert logprobs.grad.tolist() == [[-2.0, 3.0]]  # d(−ρA)/d log π = −A at ratio 1


def test_a_token_beyond_the_clip_gets_no_gradient_where_it_would_go_further():
    logprobs = torch.tensor([[0.5, -0.5, 0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0]])
    ppo_clip_losses(logprobs, torch.zeros(1, 3), advantages, ratio_clip=0.2).sum().backward()
    assert logprobs.grad[0, :2].tolist() == [0.0, 0.0]
    assert logprobs.grad[0, 2] > 0


def test_dual_clipping_bounds_the_loss_of_bad_tokens():
    losses = ppo_clip_losses(
        torch.tensor([[8.0]]), torch.zeros(1, 1), -torch.ones(1, 1), ratio_clip=0.2, dual_clip=3.0
    )
    assert losses.item() == 3.0


def test_masked_tokens_get_exactly_no_gradient():
    logprobs = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    losses = ppo_clip_losses(logprobs, torch.zeros(2, 3), torch.ones(2, 3), ratio_clip=0.2)
    aggregate(losses, token_weights(mask, "token_mean", total=2.0)).backward()
    assert (logprobs.grad[~mask] == 0).all()


def test_an_absurd_ratio_stays_finite():
    assert probability_ratio(torch.tensor([[1e4]]), torch.tensor([[0.0]])).isfinite().all()


def test_statistics_are_sums_over_real_tokens():
    mask = torch.tensor([[True, True, False]])
    got = ratio_statistics(torch.tensor([[0.0, 0.5, 9.0]]), torch.zeros(1, 3), mask, ratio_clip=0.2)
    assert got.tokens.item() == 2
    assert got.ratio.item() == pytest.approx(1 + math.exp(0.5), abs=EXACT)
    assert got.kl.item() == pytest.approx(math.exp(0.5) - 1.5, abs=EXACT)  # k3: ρ − 1 − log ρ
    assert got.clipped.item() == 1


@pytest.mark.parametrize("options", [{"ratio_clip": 0.0}, {"ratio_clip": 0.2, "dual_clip": 1.1}])
def test_a_clip_that_makes_no_sense_is_an_error(options):
    with pytest.raises(ValueError, match="must be positive"):
        ppo_clip_losses(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), **options)


def test_shapes_that_would_broadcast_are_an_error(unchecked_shapes):
    with pytest.raises(ValueError, match="differ in shape"):
        ppo_clip_losses(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3), ratio_clip=0.2)
    with pytest.raises(ValueError, match="differ in shape"):
        ppo_clip_losses(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2, 3), ratio_clip=0.2)
