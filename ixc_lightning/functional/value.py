# SPDX-License-Identifier: Apache-2.0
"""Losses of the critic, token by token, and how much of the returns it explains."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def value_losses(
    values: Float[Tensor, "R T"],
    old_values: Float[Tensor, "R T"],
    returns: Float[Tensor, "R T"],
    *,
    value_clip: float | None = None,
) -> Float[Tensor, "R T"]:
    """Squared error of the value of each token's state.

    Lₜ = (V(sₜ) − Rₜ)², and with a clip of c: max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)

    InternLM-XComposer2.5-Reward, Eq. 4 (arXiv 2501.12368), without a factor ½. Clipping keeps the values near
    those of the rollout, as the PPO code of OpenAI does (Huang et al. 2022, "The 37 implementation details of
    PPO", detail 9).

    Args:
        values: V(sₜ) now.
        old_values: V(sₜ) at the time of the rollout, without gradient.
        returns: Rₜ, without gradient.
        value_clip: c, positive, in score units; None does not clip.

    Returns:
        The losses, at least 0.

    Raises:
        ValueError: shapes differ, or c is not positive.

    Example:
        >>> value_losses(torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])).item()
        1.0
    """
    if not values.shape == old_values.shape == returns.shape:
        raise ValueError(f"values {values.shape}, old {old_values.shape}, returns {returns.shape} differ")
    losses = (values - returns).square()
    if value_clip is None:
        return losses
    if value_clip <= 0:
        raise ValueError(f"value_clip is {value_clip}, but must be positive")
    clipped = torch.clamp(values, old_values - value_clip, old_values + value_clip)
    return torch.maximum(losses, (clipped - returns).square())


def explained_variance(
    values: Float[Tensor, "R T"], returns: Float[Tensor, "R T"], response_mask: Bool[Tensor, "R T"]
) -> Float[Tensor, ""]:
    """Share of the variance of the returns that the values explain: 1 − Var(R − V)/Var(R) over real tokens.

    1 is a perfect critic, 0 one that says a constant; below 0 it harms. 0 where the returns do not vary.
    """
    errors, spread = (returns - values)[response_mask], returns[response_mask]
    if spread.numel() < 2 or not spread.var(correction=0) > 0:
        return returns.new_zeros(())
    return 1 - errors.var(correction=0) / spread.var(correction=0)
