# SPDX-License-Identifier: Apache-2.0
"""Advantages: how much better a token, or a whole response, was than what was to be expected."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GROUP_EPSILON = 1e-4
"""Keeps a group of nearly equal scores from becoming large advantages; the value of TRL's GRPO."""


class Advantages(NamedTuple):
    """What the policy and the critic learn from; 0 where masked.

    Attributes:
        advantages: for the policy.
        returns: targets of the critic's values; all 0 where there is no critic.
    """

    advantages: Float[Tensor, "R T"]
    returns: Float[Tensor, "R T"]


def gae(
    rewards: Float[Tensor, "R T"],
    values: Float[Tensor, "R T"],
    response_mask: Bool[Tensor, "R T"],
    *,
    gamma: float,
    gae_lambda: float,
) -> Advantages:
    """Generalised advantage estimates and the returns that follow from them.

    δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ),  Aₜ = δₜ + γλ Aₜ₊₁,  Rₜ = Aₜ + V(sₜ)

    InternLM-XComposer2.5-Reward, Eq. 2 (arXiv 2501.12368), where λ is called β; Schulman et al. 2016
    (arXiv 1506.02438). Behind the last real token everything is 0: a response ends there, also one that the
    length limit ended. Masked tokens between real ones are skipped: the next real token follows.

    Args:
        rewards: rₜ, for the token sampled in state sₜ.
        values: V(sₜ), of the state before the token is sampled.
        response_mask: True at real tokens.
        gamma: γ in [0, 1].
        gae_lambda: λ in [0, 1]; 1 makes A the return less the value, 0 the one-step error.

    Returns:
        Advantages, and returns, which are computed before the advantages may be whitened.

    Raises:
        ValueError: shapes differ, or γ or λ lies outside [0, 1].

    Example:
        >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
        >>> gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, gae_lambda=0.5)[0].tolist()
        [[0.25, 0.5]]
    """
    if not rewards.shape == values.shape == response_mask.shape:
        raise ValueError(f"rewards {rewards.shape}, values {values.shape}, mask {response_mask.shape} differ")
    if not (0 <= gamma <= 1 and 0 <= gae_lambda <= 1):
        raise ValueError(f"gamma {gamma} and gae_lambda {gae_lambda} must be in [0, 1]")
    advantages = torch.zeros_like(rewards)
    following = next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        real = response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(real, delta + gamma * gae_lambda * following, following)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = torch.where(real, following, 0.0)
    return Advantages(advantages, (advantages + values).masked_fill(~response_mask, 0.0))


def discounted_returns(
    rewards: Float[Tensor, "R T"], response_mask: Bool[Tensor, "R T"], *, gamma: float
) -> Float[Tensor, "R T"]:
    """Return of each token, Gₜ = rₜ + γ Gₜ₊₁: the advantages of REINFORCE without a baseline."""
    return gae(rewards, torch.zeros_like(rewards), response_mask, gamma=gamma, gae_lambda=1.0).advantages


def leave_one_out_advantages(
    rewards: Float[Tensor, " R"], group: Int[Tensor, " R"], valid: Bool[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Reward of each response less the mean reward of the other responses to the same prompt.

    Aᵢ = rᵢ − 1/(n − 1) · Σ_{j≠i} rⱼ = n/(n − 1) · (rᵢ − r̄)

    RLOO: Ahmadian et al. 2024, Eq. 8 (arXiv 2402.14740).

    Args:
        rewards: one for each whole response.
        group: the prompt of each response.
        valid: False for responses that do not count; they get 0 and are no baseline for others.

    Returns:
        The advantages; 0 where no other response is left to compare with.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> rewards, group = torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3, dtype=torch.long)
        >>> leave_one_out_advantages(rewards, group, torch.ones(3, dtype=torch.bool)).tolist()
        [-3.0, -1.5, 4.5]
    """
    count, centred = _centred(rewards, group, valid)
    return centred * count / (count - 1).clamp(min=1)


def group_advantages(
    rewards: Float[Tensor, " R"], group: Int[Tensor, " R"], valid: Bool[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Reward of each response less the mean over its prompt's responses: Aᵢ = rᵢ − r̄.

    The advantage of Dr. GRPO, Liu et al. 2025, §3.2 (arXiv 2503.20783), which leaves the division by the
    standard deviation out: it weighs prompts that are nearly always, or never, answered well too high.
    Arguments as in ``leave_one_out_advantages``.
    """
    return _centred(rewards, group, valid)[1]


def standardised_group_advantages(
    rewards: Float[Tensor, " R"], group: Int[Tensor, " R"], valid: Bool[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Reward of each response in standard deviations of its prompt's responses: Aᵢ = (rᵢ − r̄)/(s + ε).

    GRPO: DeepSeekMath, §4.1.2 (arXiv 2402.03300). s is the sample standard deviation (of n − 1) and
    ε = 10⁻⁴. Arguments as in ``leave_one_out_advantages``.

    Example:
        >>> rewards, group = torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.long)
        >>> advantages = standardised_group_advantages(rewards, group, torch.ones(2, dtype=torch.bool))
        >>> [round(a, 3) for a in advantages.tolist()]  # ∓1/(√2 + ε)
        [-0.707, 0.707]
    """
    count, centred = _centred(rewards, group, valid)
    variance = _group_sums(centred.square(), group)[group] / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + GROUP_EPSILON)


def _centred(rewards: Tensor, group: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """For each response: the number of valid ones in its group, and its reward less their mean."""
    if not rewards.shape == group.shape == valid.shape:
        raise ValueError(f"rewards {rewards.shape}, group {group.shape} and valid {valid.shape} differ")
    rewards = rewards.masked_fill(~valid, 0.0)
    count = _group_sums(valid.to(rewards.dtype), group)[group].clamp(min=1)
    mean = _group_sums(rewards, group)[group] / count
    return count, (rewards - mean).masked_fill(~valid, 0.0)


def _group_sums(values: Tensor, group: Tensor) -> Tensor:
    """Sum of the values of each group, by group id."""
    size = int(group.max()) + 1 if len(group) else 0
    return values.new_zeros(size).index_add(0, group, values)
