# SPDX-License-Identifier: Apache-2.0
"""How sure a figure of a benchmark is: resampling of its items."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def resample_weights(
    stratum: Int[Tensor, " I"], unit: Int[Tensor, " I"], *, resamples: int, seed: int
) -> Float[Tensor, "S I"]:
    """How many times each item is in each of S resamples of the benchmark.

    Within every stratum as many units are drawn, with replacement, as it has, so that no category of a
    benchmark grows, shrinks or vanishes; items of one unit come together. Efron and Tibshirani 1993, chapters
    6 and 8.

    Args:
        stratum: category of each item.
        unit: which items belong together; a unit belongs to the stratum of its first item.
        resamples: S.
        seed: the same one gives the same weights.

    Returns:
        Counts, whose sum over a stratum of single items is its size.

    Raises:
        ValueError: shapes differ, or there is nothing to resample.

    Example:
        >>> resample_weights(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), resamples=2, seed=0).sum(dim=1)
        tensor([3., 3.], dtype=torch.float64)
    """
    if stratum.shape != unit.shape:
        raise ValueError(f"one stratum and one unit per item are needed: {stratum.shape} and {unit.shape}")
    if resamples < 1 or not len(stratum):
        raise ValueError(f"{resamples} resamples of {len(stratum)} items are not possible")
    names, unit = unit.unique(return_inverse=True)
    first = torch.full((len(names),), len(unit)).scatter_reduce(
        0, unit, torch.arange(len(unit)), reduce="amin"
    )
    stratum_of_unit = stratum[first]
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(resamples, len(names), dtype=torch.float64)
    for name in stratum_of_unit.unique():
        members = (stratum_of_unit == name).nonzero().flatten()
        drawn = torch.randint(len(members), (resamples, len(members)), generator=generator)
        counts.scatter_add_(1, members[drawn], torch.ones_like(drawn, dtype=torch.float64))
    return counts[:, unit]


def weighted_share(
    values: Float[Tensor, " I"], weights: Float[Tensor, "S I"], where: Bool[Tensor, " I"]
) -> Float[Tensor, " S"]:
    """Mean of some items' values under each set of weights, Σᵢ wᵢ vᵢ / Σᵢ wᵢ; NaN where there are none.

    Example:
        >>> values, weights = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[1.0, 1.0, 1.0], [1.0, 3.0, 0.0]])
        >>> weighted_share(values, weights, torch.tensor([True, True, False]))
        tensor([0.5000, 0.2500])
    """
    chosen = weights[:, where]
    return (chosen @ values[where]) / chosen.sum(dim=1)


def interval(values: Float[Tensor, " S"], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a figure's values on the resamples; resamples that have none are left out.

    Args:
        values: the figure on each resample.
        level: share of the values inside, in (0, 1).

    Raises:
        ValueError: the level is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, but must be between 0 and 1")
    tail = (1 - level) / 2
    low, high = torch.nanquantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high


def sign_probability(differences: Float[Tensor, " S"]) -> float:
    """How often the resamples contradict a difference of two figures: min(1, 2 min(P(Δ ≤ 0), P(Δ ≥ 0))).

    Both shares are (count + 1) / (S + 1), since a finite number of resamples cannot say that something never
    happens. Davison and Hinkley 1997, §4.4.

    Returns:
        In (0, 1]; small where the sign of the difference is sure, 1 where there is none.

    Example:
        >>> round(sign_probability(torch.tensor([0.1, 0.2, 0.3, -0.1])), 2)  # 2 · (1 + 1) / (4 + 1)
        0.8
    """
    known = differences[~differences.isnan()]
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(known) + 1))
