# SPDX-License-Identifier: Apache-2.0
"""VideoRewardBench (Zhang et al. 2025, arXiv 2509.00484): pairs of answers about a clip."""

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

GROUPS = ("long_perception", "short_perception", "knowledge", "reasoning", "safety")


class VideoRewardBench(Benchmark):
    """Accuracy by category and over all items.

    The paper does not report this benchmark; ``paper_overall`` averages over items, as the official figure
    does.

    Args:
        ties: see ``Benchmark``.
    """

    name = "video_rewardbench"
    title = "VideoRewardBench"
    sizes = (1563,)

    def results(self, items: Sequence[ScoredItem]) -> Float[Tensor, " I"]:
        """1 where the chosen response scores higher."""
        return pair_results(items, tie=self.worth)

    def figures(self, items: Sequence[ScoredItem], weights: Float[Tensor, "S I"]) -> Figures:
        """Categories and ``overall``."""
        results = self.results(items)
        return {
            **group_figures("official", items, results, weights, GROUPS),
            "official_overall": overall(results, weights),
            "paper_overall": overall(pair_results(items, tie=0.0), weights),
        }
