# SPDX-License-Identifier: Apache-2.0
"""What the reward benchmarks share: items with a score for every response, and figures from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ixc_lightning.functional.bootstrap import weighted_share

TiePolicy = Literal["wrong", "half"]
Figures = dict[str, Float[Tensor, " S"]]
COIN = 0.5
"""What a tie is worth where a script breaks it by the order of the two responses, drawn at random."""


class ScoredItem(NamedTuple):
    """One item of a benchmark, with the scores of its responses.

    Attributes:
        row: place in the benchmark's files, counted from 0.
        id: as released; several items may share one.
        group: category, as the benchmark's reader names it.
        subgroup: finer category, or empty.
        digest: tells the item by its texts, whatever its place in the files.
        chosen: scores of the better responses.
        rejected: scores of the other ones.
    """

    row: int
    id: str
    group: str
    subgroup: str
    digest: str
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @property
    def num_ties(self) -> int:
        """Pairs of a better and another response with the same score."""
        return sum(better == other for better in self.chosen for other in self.rejected)


class Benchmark(ABC):
    """The figures of one benchmark.

    Figures are named ``official_…``, after the benchmark's own scripts, and ``paper_…``, as
    InternLM-XComposer2.5-Reward (arXiv 2501.12368) averages: over items. Values are shares in [0, 1].

    Args:
        ties: what two equal scores of a better and another response are in the official figures, where the
            benchmark leaves it open: ``wrong``, or ``half`` right.

    Attributes:
        name: stem of the recipe, the reader and the result files.
        title: for tables.
        sizes: numbers of items of the known releases.
        paper: rows of the paper's table, in percent, by the model's name and the name of the figure without
            its convention.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    sizes: ClassVar[tuple[int, ...]]
    paper: ClassVar[Mapping[str, Mapping[str, float]]] = {}

    def __init__(self, ties: TiePolicy = "wrong") -> None:
        self.ties = ties

    @property
    def worth(self) -> float:
        """What a tie counts in the official figures."""
        return 0.5 if self.ties == "half" else 0.0

    @abstractmethod
    def results(self, items: Sequence[ScoredItem]) -> Float[Tensor, " I"]:
        """How right each item is, in [0, 1]."""

    @abstractmethod
    def figures(self, items: Sequence[ScoredItem], weights: Float[Tensor, "S I"]) -> Figures:
        """Every figure by name, one value for each of S sets of weights over the items; NaN without items."""

    def unit(self, item: ScoredItem) -> str:
        """What the items that are resampled together have in common."""
        return str(item.row)


def pair_results(items: Sequence[ScoredItem], *, tie: float) -> Float[Tensor, " I"]:
    """1 where the first better response scores strictly higher than the first other one, ``tie`` at a tie.

    A score that is no number is higher than nothing and equal to nothing.
    """
    pairs = torch.tensor([(item.chosen[0], item.rejected[0]) for item in items], dtype=torch.float64)
    chosen, rejected = pairs.reshape(len(items), 2).unbind(dim=1)
    return torch.where(chosen == rejected, tie, (chosen > rejected).double())


def in_groups(items: Sequence[ScoredItem], *groups: str) -> Bool[Tensor, " I"]:
    """True at the items of some groups."""
    return torch.tensor([item.group in groups for item in items], dtype=torch.bool)


def group_figures(
    convention: str,
    items: Sequence[ScoredItem],
    results: Float[Tensor, " I"],
    weights: Float[Tensor, "S I"],
    groups: Sequence[str],
) -> Figures:
    """Mean result in each group, as ``convention_group``."""
    return {
        f"{convention}_{group}": weighted_share(results, weights, in_groups(items, group)) for group in groups
    }


def overall(results: Float[Tensor, " I"], weights: Float[Tensor, "S I"]) -> Float[Tensor, " S"]:
    """Mean result over all items."""
    return weighted_share(results, weights, torch.ones_like(results, dtype=torch.bool))


def mean_figure(figures: Sequence[Float[Tensor, " S"]]) -> Float[Tensor, " S"]:
    """Plain mean of figures; NaN where one of them is."""
    return torch.stack(list(figures)).mean(dim=0)
