# SPDX-License-Identifier: Apache-2.0
"""How fast training goes, in pairs or prompts, and tokens."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ixc_lightning.types import InstructionBatch, PreferenceBatch, PromptBatch

UNITS = {PreferenceBatch: "pairs", InstructionBatch: "samples", PromptBatch: "prompts"}
"""What a row of a batch is."""


class Throughput(Callback):
    """Logs ``train/pairs_per_second`` and ``train/tokens_per_second``, of all ranks.

    Without pairs the first is ``train/samples_per_second``, or ``train/prompts_per_second`` where a policy
    answers; its ``training_step`` then returns ``tokens``, how many it read and said. Lightning's
    ``ThroughputMonitor`` wants one number of tokens for every batch of a window; ours vary, so the first
    rank's real tokens are counted by the masks, each prompt once, and multiplied by the number of ranks.
    Waiting for data counts, time spent validating does not.
    """

    def __init__(self) -> None:
        self.started: float | None = None
        self.seconds = 0.0
        self.samples = 0
        self.tokens = 0
        self.logged_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with an empty window."""
        self._restart(None, trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock if it stands; waiting for the next batch counts from then on."""
        if self.started is None:
            self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log with the logger, once every ``log_every_n_steps`` optimiser steps."""
        self.samples += int(batch.real.sum())
        self.tokens += int(outputs["tokens"]) if isinstance(batch, PromptBatch) else count_tokens(batch)
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self.logged_step:
            now = time.perf_counter()
            self._stop(now)
            for name, count in ((UNITS[type(batch)], self.samples), ("tokens", self.tokens)):
                rate = count * trainer.world_size / self.seconds
                pl_module.log(f"train/{name}_per_second", rate, rank_zero_only=True)
            self._restart(now, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock; the next training batch starts it again."""
        self._stop(time.perf_counter())

    def _stop(self, now: float) -> None:
        if self.started is not None:
            self.seconds += now - self.started
            self.started = None

    def _restart(self, now: float | None, step: int) -> None:
        self.started, self.seconds = now, 0.0
        self.samples = self.tokens = 0
        self.logged_step = step


def count_tokens(batch: PreferenceBatch | InstructionBatch) -> int:
    """Real tokens of the prompts, once each, and of all responses."""
    if isinstance(batch, PreferenceBatch):
        masks = [batch.prompts.mask, batch.chosen.mask, batch.rejected.mask]
    else:
        masks = [batch.prompts.mask, batch.responses.mask]
    return sum(int(mask.sum()) for mask in masks)
