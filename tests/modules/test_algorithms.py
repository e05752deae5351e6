# SPDX-License-Identifier: Apache-2.0
"""What PPO, RLOO and GRPO each make of the same answers, against loops in float64."""

import pytest
import torch

from ixc_lightning.modules import FixedKL, GRPOModule, PPOModule, RLOOModule
from ixc_lightning.modules.experience import Reading
from tests.modules.experiences import KL_COEF, experience
from tests.modules.policies import on_policy

SAME = 1e-6  # float32 against float64
GAMMA, LAMBDA = 0.9, 0.8


def module_of(kind, tiny_folder, monkeypatch, **options):
    module = on_policy(kind, tiny_folder, kl=FixedKL(KL_COEF), **options)
    monkeypatch.setattr(module, "over_ranks", lambda moments: moments)  # there is no trainer
    return module


def test_ppo_whitens_generalised_advantages_and_leaves_returns_alone(tiny_folder, monkeypatch):
    given = experience()
    rewards, values, mask = given.rewards.double(), given.values.double(), given.response_mask
    expected = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        following = 0.0
        for t in reversed(range(int(mask[row].sum()))):
            after = values[row, t + 1] if t + 1 < mask[row].sum() else 0.0
            following = rewards[row, t] + GAMMA * after - values[row, t] + GAMMA * LAMBDA * following
            expected[row, t] = following
    module = module_of(PPOModule, tiny_folder, monkeypatch, gamma=GAMMA, gae_lambda=LAMBDA)
    found = module.advantages(given)
    real = expected[mask]
    whitened = (real - real.mean()) / real.std(correction=0)
    assert found.advantages[mask].tolist() == pytest.approx(whitened.tolist(), abs=SAME)
    assert found.returns[mask].tolist() == pytest.approx((real + values[mask]).tolist(), abs=SAME)
    assert (found.advantages[~mask] == 0).all()
    assert (found.returns[~mask] == 0).all()


def test_rloo_compares_rewards_with_kl_and_leaves_lone_answers_alone(tiny_folder, monkeypatch):
    given = experience()
    earned = given.scores.double() - KL_COEF * given.kl.double().sum(dim=1)
    gap = (earned[0] - earned[2]).item()
    found = module_of(RLOOModule, tiny_folder, monkeypatch).advantages(given).advantages
    assert found[0].tolist() == pytest.approx([gap] * 3, abs=SAME)
    assert found[2].tolist() == pytest.approx([-gap] * 3, abs=SAME)
    assert (found[[1, 3]] == 0).all()


def test_grpo_standardises_bare_scores(tiny_folder, monkeypatch):
    found = module_of(GRPOModule, tiny_folder, monkeypatch).advantages(experience()).advantages
    expected = 1.5 / (4.5**0.5 + 1e-4)  # scores 2 and −1: 1.5 from their mean, s² = 4.5
    assert found[0].tolist() == pytest.approx([expected] * 3, abs=SAME)
    assert found[2].tolist() == pytest.approx([-expected] * 3, abs=SAME)
    assert (found[[1, 3]] == 0).all()


def test_grpo_pays_for_the_kl_in_the_loss(tiny_folder, monkeypatch):
    module = module_of(GRPOModule, tiny_folder, monkeypatch)
    given = experience()
    given = given.judged(module.advantages(given))
    reading = Reading(given.logprobs, torch.zeros_like(given.logprobs))
    log_ratio = (given.ref_logprobs - given.logprobs).double()
    expected = -given.advantages.double() + KL_COEF * (log_ratio.exp() - 1 - log_ratio)
    mask = given.response_mask
    found = module.policy_losses(given, reading)[mask]
    assert found.tolist() == pytest.approx(expected[mask].tolist(), abs=SAME)
    assert not module.kl_in_reward


def test_ppo_keeps_values_near_those_of_the_rollout_where_it_is_asked_to(tiny_folder, monkeypatch):
    given = experience()
    given = given._replace(returns=given.values + 1)
    moved = given.values + 3
    module = module_of(PPOModule, tiny_folder, monkeypatch, value_clip=0.5)
    losses = module.value_losses(given, moved)
    assert torch.allclose(losses, torch.full_like(losses, 4.0), atol=1e-5)  # (3 − 1)², more than (½ − 1)²
    back = module_of(PPOModule, tiny_folder, monkeypatch, value_clip=0.5).value_losses(
        given, given.values + 1
    )
    assert torch.allclose(back, torch.full_like(back, 0.25), atol=1e-5)  # held at ½ of the way
