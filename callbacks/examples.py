# SPDX-License-Identifier: Apache-2.0
"""What a reward model says about single pairs, for a person to look at in TensorBoard."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from ixc_lightning.callbacks.rendering import Row, render_table
from ixc_lightning.types import PreferenceBatch


class PreferenceExamples(Callback):
    """Shows validation pairs with their pictures and scores, and histograms of the scores, in TensorBoard.

    Writes ``val/examples`` (a picture of a table: pictures, question, both responses with their scores), and
    the histograms ``val/chosen_scores``, ``val/rejected_scores`` and ``val/score_differences`` of the first
    rank's pairs. Needs validation outputs with ``chosen`` and ``rejected``, and a datamodule with
    ``example``. Does nothing without a ``TensorBoardLogger``.

    Args:
        count: how many pairs, spread evenly over the validation data.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self.scores: list[torch.Tensor] = []
        self.keys: list[str] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the scores of a validation that did not end."""
        self.scores, self.keys = [], []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of the batch's real pairs, and the names of their records."""
        scores = torch.stack([outputs["chosen"], outputs["rejected"]], dim=1)[batch.real]
        self.scores.append(scores.detach().float().cpu())
        self.keys += [key for key, real in zip(batch.keys, batch.real.tolist(), strict=True) if real]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table and the histograms of the first rank."""
        scores, self.scores = torch.cat(self.scores), []
        logger = next((one for one in trainer.loggers if isinstance(one, TensorBoardLogger)), None)
        if logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        board, step = logger.experiment, trainer.global_step
        chosen, rejected = scores.unbind(dim=1)
        board.add_histogram("val/chosen_scores", chosen, step)
        board.add_histogram("val/rejected_scores", rejected, step)
        board.add_histogram("val/score_differences", chosen - rejected, step)
        board.add_image(
            "val/examples",
            self._table(trainer.datamodule, scores),
            step,
            dataformats="HWC",
        )

    def _table(self, datamodule: Any, scores: torch.Tensor) -> np.ndarray:
        """The table's pixels."""
        rows = np.unique(np.linspace(0, len(scores) - 1, min(self.count, len(scores))).round().astype(int))
        return np.asarray(
            render_table(
                [Row(datamodule.example("val", self.keys[row]), *scores[row].tolist()) for row in rows]
            )
        )
