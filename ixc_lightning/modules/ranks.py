# SPDX-License-Identifier: Apache-2.0
"""Sums over ranks that losses need."""

from __future__ import annotations

import lightning as L
from jaxtyping import Shaped
from torch import Tensor


def mean_over_ranks(count: Shaped[Tensor, ""], trainer: L.Trainer) -> Tensor:
    """Mean of a count over the ranks, at least a tiny number.

    What is divided by it, and summed on each rank, has its mean over all ranks right when gradients are
    averaged over ranks: a rank with fewer tokens or pairs does not weigh more.
    """
    mean: Tensor = trainer.strategy.reduce(count.float(), reduce_op="mean")
    return mean.clamp(min=1e-8)
