# SPDX-License-Identifier: Apache-2.0
"""How fast training goes, in pairs and tokens."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ixc_lightning.types import InstructionBatch, PreferenceBatch


class Throughput(Callback):
    """Logs ``train/pairs_per_second`` (``train/samples_per_second`` without pairs) and
    ``train/tokens_per_second``, of all ranks.

    Lightning's ``ThroughputMonitor`` wants one number of tokens for every batch of a window; ours vary, so
    the real tokens are counted by the masks, each prompt once. Time spent validating does not count.
    """

    def __init__(self) -> None:
        self._restart()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock if it stands; waiting for the next batch counts from then on."""
        self.started = self.started or time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log once every ``log_every_n_steps`` batches."""
        self.samples += len(batch.keys)
        self.tokens += count_tokens(batch)
        self.batches += 1
        if self.batches == trainer.log_every_n_steps:
            seconds = (time.perf_counter() - self.started) / trainer.world_size
            unit = "pairs" if isinstance(batch, PreferenceBatch) else "samples"
            pl_module.log(f"train/{unit}_per_second", self.samples / seconds, rank_zero_only=True)
            pl_module.log("train/tokens_per_second", self.tokens / seconds, rank_zero_only=True)
            self._restart(time.perf_counter())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the window that the validation falls into."""
        self._restart()

    def _restart(self, now: float | None = None) -> None:
        self.started = now
        self.samples = self.tokens = self.batches = 0


def count_tokens(batch: PreferenceBatch | InstructionBatch) -> int:
    """Real tokens of the prompts, once each, and of all responses."""
    if isinstance(batch, PreferenceBatch):
        masks = [batch.prompts.mask, batch.chosen.mask, batch.rejected.mask]
    else:
        masks = [batch.prompts.mask, batch.responses.mask]
    return sum(int(mask.sum()) for mask in masks)
