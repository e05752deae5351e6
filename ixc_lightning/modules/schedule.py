# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules with warm-up, as torch schedulers that a recipe can name.

torch has the pieces (``LinearLR``, ``CosineAnnealingLR``, ``SequentialLR``), but a chain of schedulers cannot
be written as one ``class_path``, and a chained cosine moves on past its end.
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ixc_lightning.functional.schedule import warmup_cosine, warmup_linear


class WarmupCosineLR(LambdaLR):
    """Linear warm-up, then half a cosine down to ``final_ratio`` of the learning rate.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimiser steps of the whole run, warm-up included; the command line takes it from
            ``trainer.max_steps``.
        warmup_steps: steps of the warm-up.
        final_ratio: what is left of the learning rate at the end.
    """

    def __init__(
        self, optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_ratio: float = 0.0
    ) -> None:
        super().__init__(
            optimizer,
            lambda step: warmup_cosine(step, total=total_steps, warmup=warmup_steps, final_ratio=final_ratio),
        )


class WarmupLinearLR(LambdaLR):
    """Linear warm-up, then a straight line down to ``final_ratio`` of the learning rate.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimiser steps of the whole run, warm-up included; the command line takes it from
            ``trainer.max_steps``.
        warmup_steps: steps of the warm-up.
        final_ratio: what is left of the learning rate at the end.
    """

    def __init__(
        self, optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_ratio: float = 0.0
    ) -> None:
        super().__init__(
            optimizer,
            lambda step: warmup_linear(step, total=total_steps, warmup=warmup_steps, final_ratio=final_ratio),
        )
