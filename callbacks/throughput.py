# SPDX-License-Identifier: Apache-2.0
"""How fast training goes, in pairs or prompts, and tokens."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

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

    Pairs and samples also give ``train/tokens_per_step``, of all ranks and accumulated batches, and
    ``train/padding``: which share of their places is empty where every sequence, a response behind its
    prompt, is padded to the longest of its batch. A model that reads a pair as one tree does not read that.
    """

    def __init__(self) -> None:
        self.started: float | None = None
        self.seconds = 0.0
        self.samples = 0
        self.tokens = self.empty = self.places = 0
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
        if isinstance(batch, PromptBatch):
            self.tokens += int(outputs["tokens"])
        else:
            self.tokens += count_tokens(batch)
            empty, places = count_places(batch)
            self.empty, self.places = self.empty + empty, self.places + places
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self.logged_step:
            now = time.perf_counter()
            self._stop(now)
            for name, count in ((UNITS[type(batch)], self.samples), ("tokens", self.tokens)):
                rate = count * trainer.world_size / self.seconds
                pl_module.log(f"train/{name}_per_second", rate, rank_zero_only=True)
            if self.places:
                tokens = self.tokens * trainer.world_size / (step - self.logged_step)
                pl_module.log("train/tokens_per_step", tokens, rank_zero_only=True)
                pl_module.log("train/padding", self.empty / self.places, rank_zero_only=True)
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
        self.samples = self.tokens = self.empty = self.places = 0
        self.logged_step = step


def count_tokens(batch: PreferenceBatch | InstructionBatch) -> int:
    """Tokens of the prompts of real rows, once each, and of all their responses."""
    return sum(int(mask[batch.real].sum()) for mask in (batch.prompts.mask, *_responses(batch)))


def count_places(batch: PreferenceBatch | InstructionBatch) -> tuple[int, int]:
    """Empty places of all sequences, each padded to the longest of the batch, and all places."""
    prompts = batch.prompts.mask.sum(dim=1)
    lengths = torch.cat([prompts + mask.sum(dim=1) for mask in _responses(batch)])
    places = len(lengths) * int(lengths.max())
    return places - int(lengths.sum()), places


def _responses(batch: PreferenceBatch | InstructionBatch) -> list[Tensor]:
    if isinstance(batch, PreferenceBatch):
        return [batch.chosen.mask, batch.rejected.mask]
    return [batch.responses.mask]
