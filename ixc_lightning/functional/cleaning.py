# SPDX-License-Identifier: Apache-2.0
"""Which records of a data set stand out by a low score."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

MAD_TO_STD = 1.482602218505602
"""1 / Φ⁻¹(¾): the standard deviation of a normal distribution in units of its median absolute deviation."""
MEAN_TO_STD = math.sqrt(math.pi / 2)
"""The same in units of its mean absolute deviation."""
ROUNDING = 1e-9
"""So that 29 % of 100 are 29, although 0.29 · 100 is a little less in floating point."""


def contrasts(
    scores: Shaped[Tensor, " R"], record: Int[Tensor, " R"], is_own: Bool[Tensor, " R"]
) -> Float[Tensor, " N"]:
    """How much better than answers taken from elsewhere each record's own answer scores, in float64.

        cᵢ = r(xᵢ, yᵢ) − 1/|Oᵢ| Σ_{y ∈ Oᵢ} r(xᵢ, y)

    A reward model that was trained on pairs knows the differences between answers to one prompt only: any
    function of the prompt alone may be added to r and leaves Eq. 1 as it is. The difference takes it away.

    Args:
        scores: of all answers, in score units.
        record: which of the N records each answers, from 0 on.
        is_own: True at the record's own answer, of which there is one; the others are from elsewhere.

    Raises:
        ValueError: a score is not finite, or a record has not one own answer and at least one other.
    """
    _check_finite(scores)
    count = int(record.max()) + 1 if len(record) else 0
    ones = torch.ones_like(scores, dtype=torch.float64)
    zeros = torch.zeros(count, dtype=torch.float64, device=scores.device)
    own_count = zeros.index_add(0, record[is_own], ones[is_own])
    other_count = zeros.index_add(0, record[~is_own], ones[~is_own])
    if (own_count != 1).any() or (other_count < 1).any():
        raise ValueError("every record must have one answer of its own, and at least one other")
    own = zeros.index_add(0, record[is_own], scores[is_own].double())
    others = zeros.index_add(0, record[~is_own], scores[~is_own].double())
    return own - others / other_count


def robust_z_scores(values: Shaped[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """How many standard deviations each value lies from the middle of its group, in float64.

        zᵢ = (vᵢ − median(v)) / (1.4826 · MAD),   MAD = median(|v − median(v)|)

    Median and MAD are taken over the group (Iglewicz and Hoaglin 1993, *How to Detect and Handle Outliers*).
    Up to half of the values may be anything without moving them far. Where more than half of a group are
    equal, so that its MAD is 0, the mean absolute deviation takes its place, 1.2533 · mean(|v − median(v)|);
    where all are equal, or there is one, z is 0.

    Args:
        values: of any number of records.
        group: which group each belongs to; any whole numbers.

    Raises:
        ValueError: a value is not finite.

    Example:
        >>> robust_z_scores(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]), torch.zeros(5).long())[:3].tolist()
        [-1.3489795003921634, -0.6744897501960817, 0.0]
    """
    _check_finite(values)
    if not len(values):
        return torch.zeros_like(values, dtype=torch.float64)
    order = group.argsort(stable=True)
    sizes = torch.unique_consecutive(group[order], return_counts=True)[1].tolist()
    result = torch.empty_like(values, dtype=torch.float64)
    result[order] = torch.cat([_robust_z_scores(part) for part in values[order].double().split(sizes)])
    return result


def lowest_share(values: Shaped[Tensor, " N"], share: float) -> Bool[Tensor, " N"]:
    """True at the values that are among the lowest, at most ⌊share · N⌋ of them.

    Equal values are treated alike: of those that only in part belong to the share, none does.

    Raises:
        ValueError: a value is no number, or the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, but must lie between 0 and 1")
    if values.isnan().any():
        raise ValueError("a value is no number, so nobody can say which are the lowest")
    count = math.floor(share * len(values) + ROUNDING)
    if count == len(values):
        return torch.ones_like(values, dtype=torch.bool)
    return values < values.sort().values[count]


def _robust_z_scores(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    distance = values - _median(values)
    spread = MAD_TO_STD * _median(distance.abs())
    if spread == 0:
        spread = MEAN_TO_STD * distance.abs().mean()
    return distance / spread if spread > 0 else torch.zeros_like(distance)


def _median(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The mean of the two middle values where their number is even; ``torch.median`` gives the lower one."""
    middle = len(values) // 2
    ordered = values.sort().values
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _check_finite(values: Shaped[Tensor, " N"]) -> None:
    if not values.isfinite().all():
        raise ValueError("a value is not finite, so nobody can say how far from the others it is")
