# SPDX-License-Identifier: Apache-2.0
"""Multimodal RewardBench (Yasunaga et al. 2025, arXiv 2502.14191): pairs of answers about a picture."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ixc_lightning.metrics.benchmark import (
    Benchmark,
    Figures,
    ScoredItem,
    group_figures,
    overall,
    pair_results,
)


class MultimodalRewardBench(Benchmark):
    """Accuracy over all items and by category, with safety and reasoning in two parts each.

    The categories are those that the items name. Two equal scores have no verdict, and the official script
    draws one by lot; here they count as ``ties`` says. The paper does not report this benchmark;
    ``paper_overall`` averages over items, as the official figure does.

    Args:
        ties: see ``Benchmark``.
    """

    name = "multimodal_rewardbench"
    title = "Multimodal RewardBench"
    sizes = (4711, 5000)

    def results(self, items: Sequence[ScoredItem]) -> Float[Tensor, " I"]:
        """1 where the better output scores higher."""
        return pair_results(items, tie=self.worth)

    def figures(self, items: Sequence[ScoredItem], weights: Float[Tensor, "S I"]) -> Figures:
        """Categories, their parts, and ``overall``."""
        results = self.results(items)
        # An item counts in its category and in its part; the two differ where a category has parts.
        parts = [item._replace(group=item.subgroup) for item in items]
        names = sorted({item.group for item in items}), sorted({item.subgroup for item in items} - {""})
        return {
            **group_figures("official", items, results, weights, names[0]),
            **group_figures("official", parts, results, weights, names[1]),
            "official_overall": overall(results, weights),
            "paper_overall": overall(pair_results(items, tie=0.0), weights),
        }
