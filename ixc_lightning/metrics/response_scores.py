# SPDX-License-Identifier: Apache-2.0
"""The scores of a benchmark's responses, gathered from all ranks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ResponseScores(Metric):
    """Keeps one score for each response of each item, whichever rank scored it, in whichever order.

    ``compute`` returns the scores, and the item and the place within it that each belongs to, in order. A
    rank that scored nothing takes part in gathering all the same.
    """

    is_differentiable = False
    full_state_update = False

    scores: list[Tensor]
    places: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("places", default=[], dist_reduce_fx="cat")

    def update(
        self,
        scores: Float[Tensor, " K"],
        item: Int[Tensor, " K"],
        place: Int[Tensor, " K"],
        real: Bool[Tensor, " K"],
    ) -> None:
        """Add the scores of some responses.

        Args:
            scores: as the reward model gives them.
            item: number of the item.
            place: number of the response within it.
            real: False in rows that are not to be kept.
        """
        self.scores.append(scores.detach().float()[real])
        self.places.append(torch.stack([item, place], dim=1)[real])

    def compute(self) -> tuple[Float[Tensor, " K"], Int[Tensor, "K 2"]]:
        """Scores, with item and place, ordered by these."""
        scores, places = dim_zero_cat(self.scores), dim_zero_cat(self.places)
        if not len(scores):
            return scores, places
        _, order = torch.unique(places, dim=0, return_inverse=True)
        order = order.argsort()
        return scores[order], places[order]
