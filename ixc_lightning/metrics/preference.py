# SPDX-License-Identifier: Apache-2.0
"""Statistics of a reward model on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ixc_lightning.functional.preference import group_accuracy, is_correct, length_bias
from ixc_lightning.types import MODALITIES


class PreferenceStatistics(Metric):
    """Accuracy, margin, score moments and length bias over all pairs seen, on all ranks.

    ``compute`` returns, by name:

    * ``accuracy``: share of the pairs whose chosen response scores strictly higher;
      ``domain_accuracy/<domain>`` and ``modality_accuracy/<modality>``: the same for every group that occurs;
    * ``margin``: mean of chosen minus rejected score;
    * ``chosen_mean``, ``chosen_std``, ``rejected_mean``, ``rejected_std``, ``score_mean``, ``score_std`` (of
      both together);
    * ``length_correlation`` and ``longer_wins``: see ``functional.preference.LengthBias``.

    One number per pair is kept until ``reset``, since the moments of groups that are not known beforehand
    need them.

    Args:
        domains: names of the domains, by id.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor]
    lengths: list[Tensor]
    groups: list[Tensor]

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = list(domains)
        for name in ("scores", "lengths", "groups"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        chosen: Float[Tensor, " B"],
        rejected: Float[Tensor, " B"],
        chosen_length: Int[Tensor, " B"],
        rejected_length: Int[Tensor, " B"],
        domain: Int[Tensor, " B"],
        modality: Int[Tensor, " B"],
        real: Bool[Tensor, " B"] | None = None,
    ) -> None:
        """Add the real rows of a batch.

        Args:
            chosen: scores of the preferred responses.
            rejected: scores of the other ones.
            chosen_length: their tokens.
            rejected_length: tokens of the other ones.
            domain: index into ``domains``.
            modality: index into ``MODALITIES``.
            real: False in rows that are not to be counted; all are if null.
        """
        real = torch.ones_like(domain, dtype=torch.bool) if real is None else real
        self.scores.append(torch.stack([chosen, rejected], dim=1)[real])
        self.lengths.append(torch.stack([chosen_length, rejected_length], dim=1)[real])
        self.groups.append(torch.stack([domain, modality], dim=1)[real])

    def compute(self) -> dict[str, Tensor | float]:
        """The statistics by name."""
        chosen, rejected = dim_zero_cat(self.scores).unbind(dim=1)
        chosen_length, rejected_length = dim_zero_cat(self.lengths).unbind(dim=1)
        domain, modality = dim_zero_cat(self.groups).unbind(dim=1)
        correct = is_correct(chosen, rejected)
        bias = length_bias(chosen - rejected, chosen_length - rejected_length)
        by_domain, by_modality = group_accuracy(correct, domain), group_accuracy(correct, modality)
        both = torch.cat([chosen, rejected])
        return {
            "accuracy": correct.float().mean(),
            **{f"domain_accuracy/{self.domains[group]}": value for group, value in by_domain.items()},
            **{f"modality_accuracy/{MODALITIES[group]}": value for group, value in by_modality.items()},
            "margin": (chosen - rejected).mean(),
            "chosen_mean": chosen.mean(),
            "chosen_std": chosen.std(correction=0),
            "rejected_mean": rejected.mean(),
            "rejected_std": rejected.std(correction=0),
            "score_mean": both.mean(),
            "score_std": both.std(correction=0),
            "length_correlation": bias.correlation,
            "longer_wins": bias.longer_wins,
        }
