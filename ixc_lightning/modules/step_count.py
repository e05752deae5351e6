# SPDX-License-Identifier: Apache-2.0
"""What an optimiser step is made from, counted over ranks and over batches that accumulate."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

SMALLEST = 1e-3
"""Counts below it are of a batch without a real row on any rank."""


class StepCount:
    """Makes the loss of a step the mean over all its pairs or tokens, however its batches differ in size.

    Lightning takes the plain mean of the gradients gₘ of k accumulated batches. With nₘ pairs or tokens in
    batch m, that of the mean over all of them is

        g = Σₘ nₘ gₘ / Σₘ nₘ

    The sum is known behind the last batch alone, so each loss is multiplied by nₘ / n₁ first, and the
    gradient by k · n₁ / Σₘ nₘ in the end. For batches of one size both factors are 1.
    """

    def __init__(self) -> None:
        self._counts: list[Float[Tensor, ""]] = []

    def share(self, count: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What the loss of a batch is to be multiplied by.

        Args:
            count: pairs or tokens that its loss is the mean of, as a mean over the ranks.
        """
        self._counts.append(count)
        first = self._counts[0]
        return count / torch.where(first > SMALLEST, first, torch.ones_like(first))

    def settle(self, parameters: Iterable[Parameter], trainer: L.Trainer) -> float:
        """Give the gradients their scale before the optimiser's step, and begin with the next one.

        Args:
            parameters: those that the step changes.
            trainer: tells how many batches accumulate, and how many ranks there are.

        Returns:
            Pairs or tokens of the step, over all ranks.
        """
        counts, self._counts = torch.stack(self._counts).double().tolist(), []
        total = sum(counts)
        if trainer.accumulate_grad_batches > 1:
            first = counts[0] if counts[0] > SMALLEST else 1.0
            factor = trainer.accumulate_grad_batches * first / max(total, SMALLEST)
            for parameter in parameters if factor != 1.0 else ():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return total * trainer.world_size
