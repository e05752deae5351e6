# SPDX-License-Identifier: Apache-2.0
"""MM-RLHF-RewardBench (Zhang et al. 2025, arXiv 2502.10391): pairs about pictures and clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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

GROUPS = ("mcq", "long", "short", "safety", "video")


class MMRLHFRewardBench(Benchmark):
    """Accuracy over the pairs (``overall``) and over the prompts whose pairs are all right (``plus``).

    Pairs of one id are about one prompt. The paper does not report this benchmark; ``paper_overall`` averages
    over pairs, as the official accuracy does.

    Args:
        ties: see ``Benchmark``.
    """

    name = "mm_rlhf_rewardbench"
    title = "MM-RLHF-RewardBench"
    sizes = (170,)

    def results(self, items: Sequence[ScoredItem]) -> Float[Tensor, " I"]:
        """1 where the chosen response scores higher."""
        return pair_results(items, tie=self.worth)

    def figures(self, items: Sequence[ScoredItem], weights: Float[Tensor, "S I"]) -> Figures:
        """Categories, ``overall`` and ``plus``."""
        results = self.results(items)
        first, whole = _prompts(items, pair_results(items, tie=0.0))
        return {
            **group_figures("official", items, results, weights, GROUPS),
            "official_overall": overall(results, weights),
            # Pairs of one prompt have one weight, so that of the first stands for the prompt's.
            "official_plus": overall(whole, weights[:, first]),
            "paper_overall": overall(pair_results(items, tie=0.0), weights),
        }

    def unit(self, item: ScoredItem) -> str:
        """The pairs of a prompt belong together."""
        return item.id


def _prompts(
    items: Sequence[ScoredItem], results: Float[Tensor, " I"]
) -> tuple[list[int], Float[Tensor, " prompts"]]:
    """Place of each prompt's first pair, and whether all its pairs are right."""
    first: dict[str, int] = {}
    lowest: dict[str, float] = {}
    for index, (item, result) in enumerate(zip(items, results.tolist(), strict=True)):
        first.setdefault(item.id, index)
        lowest[item.id] = min(result, lowest.get(item.id, result))
    return list(first.values()), torch.tensor(list(lowest.values()), dtype=torch.float64)
