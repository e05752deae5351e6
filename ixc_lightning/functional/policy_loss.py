# SPDX-License-Identifier: Apache-2.0
"""Losses of the policy, token by token, and what tells whether an update was healthy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ixc_lightning.functional.kl import LOG_RATIO_LIMIT


class RatioStatistics(NamedTuple):
    """How far an update has moved the policy; sums over real tokens, so that parts can be added up.

    Attributes:
        tokens: number of real tokens.
        ratio: sum of π/π_old; the mean is 1 at the first minibatch of an iteration.
        kl: sum of the k3 estimates of KL(old ‖ policy), in nats.
        clipped: number of tokens whose ratio left [1 − ε, 1 + ε].
    """

    tokens: Float[Tensor, ""]
    ratio: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    clipped: Float[Tensor, ""]


def probability_ratio(
    logprobs: Float[Tensor, "R T"], old_logprobs: Float[Tensor, "R T"]
) -> Float[Tensor, "R T"]:
    """π/π_old of each token, from log-probabilities whose difference is held within ±20.

    Raises:
        ValueError: shapes differ.
    """
    if logprobs.shape != old_logprobs.shape:
        raise ValueError(f"logprobs {logprobs.shape} and old_logprobs {old_logprobs.shape} differ in shape")
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def ppo_clip_losses(
    logprobs: Float[Tensor, "R T"],
    old_logprobs: Float[Tensor, "R T"],
    advantages: Float[Tensor, "R T"],
    *,
    ratio_clip: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "R T"]:
    """Clipped surrogate loss of each token.

    Lₜ = −min(ρₜ Aₜ, clip(ρₜ, 1 − ε, 1 + ε) Aₜ),  ρₜ = π(yₜ)/π_old(yₜ)

    Schulman et al. 2017, Eq. 7 (arXiv 1707.06347). InternLM-XComposer2.5-Reward, Eq. 3 (arXiv 2501.12368),
    prints the ratio against π_ref and no outer sign; with π_ref's log-probabilities as ``old_logprobs`` this
    is that equation with the sign of a loss. Where A < 0, min(ρ A, …) has no bound; dual clipping bounds the
    loss there by −c A (Ye et al. 2020, Eq. 5, arXiv 1912.09729).

    Args:
        logprobs: log π of the sampled tokens.
        old_logprobs: the same when they were sampled, without gradient.
        advantages: Aₜ, without gradient.
        ratio_clip: ε, positive.
        dual_clip: c, above 1 + ε; None leaves the loss unbounded.

    Returns:
        The losses, lower is better; −A at ratio 1.

    Raises:
        ValueError: shapes differ, ε is not positive, or c is not above 1 + ε.

    Example:
        >>> old, new = torch.zeros(1, 2), torch.tensor([[0.0, 0.5]])  # ratios 1 and 1.65
        >>> ppo_clip_losses(new, old, torch.ones(1, 2), ratio_clip=0.2).tolist()
        [[-1.0, -1.2000000476837158]]
    """
    if advantages.shape != logprobs.shape:
        raise ValueError(f"advantages {advantages.shape} and logprobs {logprobs.shape} differ in shape")
    if ratio_clip <= 0 or (dual_clip is not None and dual_clip <= 1 + ratio_clip):
        raise ValueError(f"ratio_clip {ratio_clip} must be positive, dual_clip {dual_clip} above 1 + that")
    ratio = probability_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return losses
    return torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)


def ratio_statistics(
    logprobs: Float[Tensor, "R T"],
    old_logprobs: Float[Tensor, "R T"],
    response_mask: Bool[Tensor, "R T"],
    *,
    ratio_clip: float,
) -> RatioStatistics:
    """Mean ratio, drift and share of clipped tokens of an update, as sums over its real tokens."""
    ratio = probability_ratio(logprobs.detach(), old_logprobs)[response_mask]
    return RatioStatistics(
        tokens=response_mask.sum().to(ratio.dtype),
        ratio=ratio.sum(),
        kl=(ratio - 1 - ratio.log()).sum(),
        clipped=((ratio - 1).abs() > ratio_clip).sum().to(ratio.dtype),
    )
