# SPDX-License-Identifier: Apache-2.0
"""Advantages agree with float64 loops over the equations, and with hand-worked examples."""

import statistics

import numpy as np
import pytest
import torch

from ixc_lightning.functional.advantages import (
    GROUP_EPSILON,
    discounted_returns,
    gae,
    group_advantages,
    leave_one_out_advantages,
    standardised_group_advantages,
)

EXACT = 1e-6
GROUP = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])  # three samples of three prompts, stacked
VALID = torch.ones(9, dtype=torch.bool)


def _case(rows=4, tokens=6):
    torch.manual_seed(0)
    lengths = torch.tensor([6, 3, 1, 0])
    mask = torch.arange(tokens) < lengths[:, None]
    rewards, values = (torch.randn(rows, tokens).masked_fill(~mask, 0) for _ in range(2))
    return rewards, values, mask


def _reference_gae(rewards, values, mask, gamma, lam):
    """Aₜ = Σₖ (γλ)ᵏ δₜ₊ₖ, term by term in float64, from the real tokens of each row alone."""
    out = np.zeros(rewards.shape)
    for row in range(len(rewards)):
        real = [t for t in range(mask.shape[1]) if mask[row, t]]
        r, v = ([float(x[row, t]) for t in real] for x in (rewards, values))
        deltas = [r[i] + gamma * (v[i + 1] if i + 1 < len(v) else 0.0) - v[i] for i in range(len(real))]
        for i, t in enumerate(real):
            out[row, t] = sum((gamma * lam) ** k * d for k, d in enumerate(deltas[i:]))
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae_agrees_with_the_sum_over_errors_in_float64(gamma, lam):
    rewards, values, mask = _case()
    got = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    expected = _reference_gae(rewards, values, mask, gamma, lam)
    assert np.allclose(got.advantages.numpy(), expected, atol=EXACT)
    returns = np.where(mask, expected + values.numpy(), 0)
    assert np.allclose(got.returns.numpy(), returns, atol=EXACT)


def test_gae_of_two_tokens_by_hand():
    # γ 0.5, λ 0.5: δ₁ = 1 + 0.5·4 − 2 = 1, δ₂ = 3 − 4 = −1; A₂ = −1, A₁ = 1 + 0.25·(−1) = 0.75
    rewards, values = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]])
    got = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=0.5, gae_lambda=0.5)
    assert got.advantages.tolist() == [[0.75, -1.0]]
    assert got.returns.tolist() == [[2.75, 3.0]]


def test_gae_does_not_depend_on_padding_nor_on_what_is_masked():
    rewards, values, mask = _case()
    short = gae(rewards, values, mask, gamma=0.99, gae_lambda=0.95)
    noise = torch.full((4, 3), float("nan"))
    wide = [torch.cat([x, noise], dim=1) for x in (rewards, values)]
    longer = gae(*wide, torch.nn.functional.pad(mask, (0, 3)), gamma=0.99, gae_lambda=0.95)
    assert torch.equal(longer.advantages[:, :6], short.advantages)
    assert not longer.advantages[:, 6:].any()


def test_gae_skips_masked_tokens_between_real_ones():
    rewards, values = torch.tensor([[1.0, 9.0, 3.0]]), torch.tensor([[2.0, 9.0, 4.0]])
    gap = gae(rewards, values, torch.tensor([[True, False, True]]), gamma=0.5, gae_lambda=0.5)
    assert gap.advantages.tolist() == [[0.75, 0.0, -1.0]]  # as by hand above


def test_discounted_returns_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    # 4; 2 + ½·4 = 4; 1 + ½·4 = 3
    assert discounted_returns(torch.tensor([[1.0, 2.0, 4.0, 0.0]]), mask, gamma=0.5).tolist() == [
        [3.0, 4.0, 4.0, 0.0]
    ]


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others():
    torch.manual_seed(0)
    rewards = torch.randn(9)
    expected = [
        rewards[i].item()
        - statistics.fmean(rewards[j].item() for j in range(9) if GROUP[j] == GROUP[i] and j != i)
        for i in range(9)
    ]
    assert leave_one_out_advantages(rewards, GROUP, VALID).tolist() == pytest.approx(expected, abs=EXACT)


def test_standardised_groups_use_the_sample_deviation_of_each_prompt():
    torch.manual_seed(0)
    rewards = torch.randn(9)
    expected = []
    for i in range(9):
        own = [rewards[j].item() for j in range(9) if GROUP[j] == GROUP[i]]
        expected.append((rewards[i].item() - statistics.fmean(own)) / (statistics.stdev(own) + GROUP_EPSILON))
    got = standardised_group_advantages(rewards, GROUP, VALID)
    assert got.tolist() == pytest.approx(expected, abs=EXACT)


BASELINES = [leave_one_out_advantages, group_advantages, standardised_group_advantages]


@pytest.mark.parametrize("advantages", BASELINES)
def test_the_advantages_of_a_prompt_sum_to_zero_and_ignore_a_shift_of_its_rewards(advantages):
    torch.manual_seed(0)
    rewards = torch.randn(9)
    got = advantages(rewards, GROUP, VALID)
    assert torch.zeros(3).index_add(0, GROUP, got).abs().max() < EXACT
    moved = advantages(rewards + torch.tensor([5.0, -2.0, 0.0])[GROUP], GROUP, VALID)
    assert torch.allclose(moved, got, atol=1e-5)


@pytest.mark.parametrize("advantages", BASELINES)
def test_an_invalid_response_gets_nothing_and_is_no_baseline(advantages):
    rewards = torch.tensor([1.0, 3.0, float("nan")])
    group = torch.zeros(3, dtype=torch.long)
    two = advantages(rewards[:2], group[:2], torch.ones(2, dtype=torch.bool))
    got = advantages(rewards, group, torch.tensor([True, True, False]))
    assert got.tolist() == [*two.tolist(), 0.0]


@pytest.mark.parametrize("advantages", BASELINES)
def test_a_response_alone_and_equal_responses_have_no_advantage(advantages):
    group = torch.tensor([0, 1, 1])
    assert not advantages(torch.tensor([5.0, 2.0, 2.0]), group, torch.ones(3, dtype=torch.bool)).any()


@pytest.mark.parametrize("advantages", BASELINES)
def test_the_order_of_the_rows_does_not_matter(advantages):
    torch.manual_seed(0)
    rewards, order = torch.randn(9), torch.randperm(9)
    got = advantages(rewards[order], GROUP[order], VALID)
    assert torch.allclose(got, advantages(rewards, GROUP, VALID)[order], atol=EXACT)


def test_shapes_that_would_broadcast_are_an_error(unchecked_shapes):
    with pytest.raises(ValueError, match="differ"):
        gae(torch.zeros(2, 3), torch.zeros(1, 3), torch.ones(2, 3).bool(), gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match="differ"):
        group_advantages(torch.zeros(2), torch.zeros(3, dtype=torch.long), torch.ones(2).bool())


def test_a_discount_above_one_is_an_error():
    rewards, values, mask = _case()
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        gae(rewards, values, mask, gamma=1.5, gae_lambda=1.0)
