# SPDX-License-Identifier: Apache-2.0
"""Losses and statistics of preference pairs, from the scores of the two responses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.nn.functional import logsigmoid


class LengthBias(NamedTuple):
    """How much the scores follow the lengths.

    Attributes:
        correlation: Pearson correlation of score difference and length difference, chosen minus rejected, in
            [-1, 1]; 0 where one of them never varies. 0 is the healthy value only if the lengths carry no
            information themselves.
        longer_wins: share of the pairs of unequal length in which the longer response scores higher; 0.5 if
            there are none.
    """

    correlation: Float[Tensor, ""]
    longer_wins: Float[Tensor, ""]


def pairwise_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    *,
    margin: Float[Tensor, " B"] | float = 0.0,
    label_smoothing: float = 0.0,
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the preferences under the Bradley-Terry model.

    L = −E[(1 − ε) log σ(Δ) + ε log σ(−Δ)],  Δ = r(x, y_w) − r(x, y_l) − m

    InternLM-XComposer2.5-Reward, Eq. 1 (arXiv 2501.12368), where the parenthesis is misprinted. The margin m
    is that of Llama 2, Eq. 2 (arXiv 2307.09288); ε is the share of labels taken to be wrong, as in
    conservative DPO.

    Args:
        chosen: scores r(x, y_w) of the preferred responses.
        rejected: scores r(x, y_l) of the other responses.
        margin: m, how much higher the chosen score should be, in score units.
        label_smoothing: ε in [0, 0.5).
        weights: of the pairs in the mean; 1 / B each if null.

    Returns:
        The loss in nats, lower is better; log 2 for a model that cannot tell the two apart.

    Raises:
        ValueError: shapes differ, or ε is out of range.

    Example:
        >>> round(pairwise_loss(torch.tensor([1.0]), torch.tensor([0.0])).item(), 4)  # log(1 + e⁻¹)
        0.3133
    """
    _require_pairs(chosen, rejected)
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be in [0, 0.5)")
    difference = chosen - rejected - margin
    likelihood = (1 - label_smoothing) * logsigmoid(difference) + label_smoothing * logsigmoid(-difference)
    return -_mean(likelihood, weights)


def centre_penalty(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], *, weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """Mean square of the sum of a pair's scores, E[(r_w + r_l)²], which keeps the scores around zero.

    The pairwise loss leaves the level of the scores free. Eisenstein et al. 2023, Eq. 2 (arXiv 2312.09244).

    Args:
        chosen: scores r_w of the preferred responses.
        rejected: scores r_l of the other responses.
        weights: of the pairs in the mean; 1 / B each if null.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> centre_penalty(torch.tensor([2.0]), torch.tensor([1.0])).item()
        9.0
    """
    _require_pairs(chosen, rejected)
    return _mean((chosen + rejected).square(), weights)


def is_correct(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """True where the chosen response scores strictly higher: a tie is wrong, and so is NaN.

    Raises:
        ValueError: shapes differ.
    """
    _require_pairs(chosen, rejected)
    return chosen > rejected


def length_bias(score_difference: Float[Tensor, " B"], length_difference: Real[Tensor, " B"]) -> LengthBias:
    """Whether the reward model prefers length: correlation, and how often the longer response wins.

    Args:
        score_difference: r(x, y_w) − r(x, y_l).
        length_difference: tokens of y_w minus tokens of y_l.

    Raises:
        ValueError: shapes differ.
    """
    _require_pairs(score_difference, length_difference)
    scores, lengths = score_difference.double(), length_difference.double()
    centred = scores - scores.mean(), lengths - lengths.mean()
    spread = centred[0].norm() * centred[1].norm()
    correlation = torch.where(spread > 0, (centred[0] * centred[1]).sum() / spread, 0.0)
    unequal = lengths != 0
    agree = ((scores * lengths) > 0) & unequal
    share = torch.where(unequal.any(), agree.sum() / unequal.sum(), 0.5)
    return LengthBias(correlation.float(), share.float())


def group_accuracy(correct: Bool[Tensor, " B"], group: Int[Tensor, " B"]) -> dict[int, float]:
    """Share of correct pairs in each group that has any, by group id."""
    return {int(g): correct[group == g].float().mean().item() for g in group.unique()}


def _require_pairs(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"one value per pair is needed on both sides, got shapes {first.shape} and {second.shape}"
        )


def _mean(values: Float[Tensor, " B"], weights: Float[Tensor, " B"] | None) -> Float[Tensor, ""]:
    return values.mean() if weights is None else torch.dot(values, weights)
