# SPDX-License-Identifier: Apache-2.0
"""VL-RewardBench (Li et al. 2024, arXiv 2411.17451): pairs of answers about one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ixc_lightning.metrics.benchmark import (
    COIN,
    Benchmark,
    Figures,
    ScoredItem,
    group_figures,
    mean_figure,
    overall,
    pair_results,
)

GROUPS = ("general", "hallucination", "reasoning")


class VLRewardBench(Benchmark):
    """Accuracy by group, over all items (``overall``), and the mean of the groups (``macro``).

    The official scripts judge generative models, whose unreadable verdicts leave the denominator; a scalar
    score always gives a verdict. The paper's script gives the two responses in random order and sorts them by
    score, so that a tie is right half of the time; ``paper_…`` is its expected value.

    Args:
        ties: see ``Benchmark``.
    """

    name = "vl_rewardbench"
    title = "VL-RewardBench"
    sizes = (1247, 1250)
    paper: ClassVar = {
        model: dict(zip((*GROUPS, "overall", "macro"), row, strict=True))
        for model, row in {
            "Gemini-1.5-Flash (2024-09-24)": (47.8, 59.6, 58.4, 57.6, 55.3),
            "Gemini-1.5-Pro (2024-09-24)": (50.8, 72.5, 64.2, 67.2, 62.5),
            "Claude-3.5-Sonnet (2024-06-22)": (43.4, 55.0, 62.3, 55.3, 53.6),
            "GPT-4o-mini (2024-07-18)": (41.7, 34.5, 58.2, 41.5, 44.8),
            "GPT-4o (2024-08-06)": (49.1, 67.6, 70.5, 65.8, 62.4),
            "LLaVA-OneVision-7B-ov": (32.2, 20.1, 57.1, 29.6, 36.5),
            "Qwen2-VL-7B": (31.6, 19.1, 51.1, 28.3, 33.9),
            "Molmo-7B": (31.1, 31.8, 56.2, 37.5, 39.7),
            "InternVL2-8B": (35.6, 41.1, 59.0, 44.5, 45.2),
            "LLaVA-Critic-8B": (54.6, 38.3, 59.1, 41.2, 44.0),
            "Llama-3.2-11B": (33.3, 38.4, 56.6, 42.9, 42.8),
            "Pixtral-12B": (35.6, 25.9, 59.9, 35.8, 40.4),
            "Molmo-72B": (33.9, 42.3, 54.9, 44.1, 43.7),
            "Qwen2-VL-72B": (38.1, 32.8, 58.0, 39.5, 43.0),
            "NVLM-D-72B": (38.9, 31.6, 62.0, 40.1, 44.1),
            "Llama-3.2-90B": (42.6, 57.3, 61.7, 56.2, 53.9),
            "IXC-2.5-Reward": (84.7, 62.5, 62.9, 65.8, 70.0),
        }.items()
    }

    def results(self, items: Sequence[ScoredItem]) -> Float[Tensor, " I"]:
        """1 where the preferred response scores higher."""
        return pair_results(items, tie=self.worth)

    def figures(self, items: Sequence[ScoredItem], weights: Float[Tensor, "S I"]) -> Figures:
        """Groups, ``overall`` and ``macro`` in both conventions, which differ in what a tie is worth."""
        figures: Figures = {}
        for convention, tie in (("official", self.worth), ("paper", COIN)):
            results = pair_results(items, tie=tie)
            groups = group_figures(convention, items, results, weights, GROUPS)
            figures |= groups
            figures[f"{convention}_overall"] = overall(results, weights)
            figures[f"{convention}_macro"] = mean_figure(list(groups.values()))
        return figures
