# SPDX-License-Identifier: Apache-2.0
"""Counts, means and variances of values that arrive in parts: from ranks, batches, iterations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-8


class Moments(NamedTuple):
    """How many values there were, their mean, and the sum of their squared deviations from it.

    Plain numbers of double precision: they travel between ranks and into checkpoints.
    """

    count: float  # type: ignore[assignment]  # hides ``tuple.count``, which nobody wants of three numbers
    mean: float
    deviations: float

    @property
    def std(self) -> float:
        """Standard deviation σ = √(Σ(x − μ)²/n); 0 for no values."""
        return (self.deviations / self.count) ** 0.5 if self.count else 0.0


NO_MOMENTS = Moments(0.0, 0.0, 0.0)


def masked_moments(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Moments:
    """Moments of the values where the mask is True, computed in float64.

    Raises:
        ValueError: values and mask differ in shape.

    Example:
        >>> masked_moments(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        Moments(count=2.0, mean=2.0, deviations=2.0)
    """
    if values.shape != mask.shape:
        raise ValueError(f"values {values.shape} and mask {mask.shape} differ in shape")
    real = values[mask].double()
    if not len(real):
        return NO_MOMENTS
    mean = real.mean()
    return Moments(float(len(real)), mean.item(), (real - mean).square().sum().item())


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of all parts together, exactly, whatever their sizes.

    n = Σnᵢ,  μ = Σnᵢμᵢ / n,  S = ΣSᵢ + Σnᵢ(μᵢ − μ)²

    Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
    """
    parts = [part for part in parts if part.count]
    if not parts:
        return NO_MOMENTS
    count = sum(part.count for part in parts)
    mean = sum(part.count * part.mean for part in parts) / count
    deviations = sum(part.deviations + part.count * (part.mean - mean) ** 2 for part in parts)
    return Moments(count, mean, deviations)


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], moments: Moments
) -> Float[Tensor, "*shape"]:
    """Values with mean 0 and standard deviation 1: (x − μ)/(σ + ε), ε = 10⁻⁸; 0 where masked.

    Args:
        values: such as advantages.
        mask: True at real values.
        moments: of the values of all ranks, so that all ranks scale alike (``merge_moments``).
    """
    return ((values - moments.mean) / (moments.std + EPSILON)).masked_fill(~mask, 0.0)


def rescale(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], moments: Moments
) -> Float[Tensor, "*shape"]:
    """Values with standard deviation 1 around the mean that they had: (x − μ)/(σ + ε) + μ; 0 where masked.

    For rewards, whose mean says whether to do more of what was done.
    """
    return (whiten(values, mask, moments) + moments.mean).masked_fill(~mask, 0.0)


def standardise_groups(
    values: Float[Tensor, " R"], group: torch.Tensor, moments: dict[int, Moments]
) -> Float[Tensor, " R"]:
    """Each value less the mean of its group, divided by the standard deviation of its group.

    A group of one value, or of equal ones, is centred and not divided: there is no scale to be known.

    Args:
        values: such as scores.
        group: id of each value's group, such as its task domain.
        moments: of every group that occurs.
    """
    out = torch.zeros_like(values)
    for index, known in moments.items():
        scale = known.std if known.std > EPSILON else 1.0
        out = torch.where(group == index, (values - known.mean) / scale, out)
    return out
