# SPDX-License-Identifier: Apache-2.0
"""RewardBench (Lambert et al. 2024, arXiv 2403.13787): pairs of text in four sections, and prior sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.bootstrap import weighted_share
from ixc_lightning.metrics.benchmark import (
    Benchmark,
    Figures,
    ScoredItem,
    group_figures,
    in_groups,
    mean_figure,
    pair_results,
)

SECTIONS = {
    "chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "chat_hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    # math-prm has 447 items; its weight makes mathematics count as much as code.
    "reasoning": {
        "math-prm": 984,
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}
"""Weight of every subset in its section: its number of items, with one exception."""
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
PRIOR_WEIGHT = 0.5


class RewardBench(Benchmark):
    """Accuracy by section, and their mean.

    Official: the accuracies of the subsets, a tie being wrong, are averaged with fixed weights to sections,
    and these plainly to ``overall``. Where items of the prior sets are there, ``official_prior_sets`` is the
    plain mean of their four accuracies, and ``official_with_prior_sets`` the mean of the five sections in
    which they weigh one half. Paper: a section is the share of its correct items, and ``overall`` that of all
    of them, prior sets apart.

    Args:
        ties: see ``Benchmark``; the official scripts count half for generative judges alone.
    """

    name = "rewardbench"
    title = "RewardBench"
    sizes = (2985,)
    paper: ClassVar = {
        model: dict(zip((*SECTIONS, "overall"), row, strict=True))
        for model, row in {
            "InternLM2-7B-Reward": (99.2, 69.5, 87.2, 94.5, 87.6),
            "InternLM2-20B-Reward": (98.9, 76.5, 89.5, 95.8, 90.2),
            "Skywork-Reward-Llama3.1-8B": (95.8, 87.3, 90.8, 96.2, 92.5),
            "INF-ORM-Llama3.1-70B": (96.6, 91.0, 93.6, 99.1, 95.1),
            "Qwen2-VL-7B": (96.6, 57.0, 73.9, 94.3, 83.8),
            "LLaVA-Critic-8B": (96.9, 52.8, 81.7, 83.5, 80.0),
            "IXC-2.5-Reward": (90.8, 83.8, 87.8, 90.0, 88.6),
        }.items()
    }

    def results(self, items: Sequence[ScoredItem]) -> Float[Tensor, " I"]:
        """1 where the chosen response scores higher."""
        return pair_results(items, tie=self.worth)

    def figures(self, items: Sequence[ScoredItem], weights: Float[Tensor, "S I"]) -> Figures:
        """Sections and ``overall`` in both conventions."""
        results = self.results(items)
        subsets = group_figures("official", items, results, weights, _subsets())
        figures = {f"official_{section}": _weighted(subsets, tests) for section, tests in SECTIONS.items()}
        figures["official_overall"] = mean_figure(list(figures.values()))
        if in_groups(items, *PRIOR_SETS).any():
            figures |= _with_prior_sets(items, results, weights, figures["official_overall"])
        strict = pair_results(items, tie=0.0)
        for section, tests in SECTIONS.items():
            figures[f"paper_{section}"] = weighted_share(strict, weights, in_groups(items, *tests))
        figures["paper_overall"] = weighted_share(strict, weights, in_groups(items, *_subsets()))
        return figures


def _subsets() -> list[str]:
    return [subset for tests in SECTIONS.values() for subset in tests]


def _weighted(subsets: Figures, weights: dict[str, int]) -> Float[Tensor, " S"]:
    """Mean of the subsets of a section that have items; NaN if none has."""
    values = torch.stack([subsets[f"official_{name}"] for name in weights])
    shares = torch.tensor(list(weights.values()), dtype=values.dtype).unsqueeze(1)
    shares = shares.where(~values.isnan(), 0.0)
    return (shares * values.nan_to_num()).sum(dim=0) / shares.sum(dim=0)


def _with_prior_sets(
    items: Sequence[ScoredItem],
    results: Float[Tensor, " I"],
    weights: Float[Tensor, "S I"],
    sections: Float[Tensor, " S"],
) -> Figures:
    prior = mean_figure(list(group_figures("official", items, results, weights, PRIOR_SETS).values()))
    total = len(SECTIONS) * sections + PRIOR_WEIGHT * prior
    return {
        "official_prior_sets": prior,
        "official_with_prior_sets": total / (len(SECTIONS) + PRIOR_WEIGHT),
    }
