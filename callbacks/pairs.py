# SPDX-License-Identifier: Apache-2.0
"""Answers on the disk while they are made, and the pairs that a judge makes of them at the end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import track

from ixc_lightning.callbacks.resuming import RunFolder

PAIRS = "pairs"


class PairWriter(Callback):
    """Writes ``pairs/``: preference shards, the provenance of each pair, and a report.

    Every batch of answers is written below ``parts/`` when it is made, by each rank for itself. When all are
    there, the first rank lets the judge decide, one prompt after the other in the order of the data, and
    the pairs appear under their name when they are complete. A run that was killed, and is started again with
    the same folder, answers nothing twice; what a paid judge said is in its cache. Other settings of judge
    and choice may be tried on the same answers: the pairs are made anew.

    Needs a datamodule with ``leave_out``, ``fingerprint``, ``conversation`` and ``write_pairs``; and a module
    with ``fingerprint``, ``summary`` and ``pairs``, whose ``predict_step`` returns entries with ``row``. Does
    nothing but in ``predict``.

    Args:
        folder: where to write; null is ``make_pairs`` in the trainer's ``default_root_dir``.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.given = folder
        self.run: RunFolder | None = None
        self.is_noted = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find what an earlier run has answered, and have the datamodule leave it out.

        Raises:
            InputError: the folder belongs to another run.
        """
        if stage != "predict":
            return
        folder = Path(self.given or Path(trainer.default_root_dir) / "make_pairs").expanduser()
        self.run = RunFolder(folder, trainer)
        self.is_noted = False
        self.run.check({"data": trainer.datamodule.fingerprint})
        done = self.run.done()
        trainer.strategy.barrier("what is answered was read by all ranks")
        trainer.datamodule.leave_out(done)
        if len(done):
            rank_zero_info(f"{folder}: {len(set(done.tolist())):,} prompts are answered already")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note whose answers these are."""
        trainer.predict_loop.return_predictions = False  # they are on the disk, and may be many
        self._note(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the batch's answers."""
        assert self.run is not None
        self.run.parts.append(outputs)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the pairs if all is answered; Lightning comes here only if all went well."""
        if self.run is None:
            return
        self._note(trainer, pl_module)
        self.run.parts.close()
        trainer.strategy.barrier("every rank has written its answers")
        # Judging may take hours, so the other ranks do not wait for it.
        try:
            if trainer.is_global_zero:
                self._make(trainer, pl_module)
        finally:
            self.run.close()
            self.run = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Let another run have the folder."""
        if self.run is not None:
            self.run.close()

    def _make(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.run is not None
        prompts = len(trainer.datamodule)
        done = len({row for row in self.run.done().tolist() if row < prompts})
        if done < prompts:
            rank_zero_info(
                f"{done:,} of {prompts:,} prompts are answered; run again with this folder for the rest"
            )
            return
        # An earlier run may have answered more, under a higher limit.
        entries = islice(self.run.parts.in_order(), prompts)
        made = pl_module.pairs(entries, trainer.datamodule.conversation)
        shown: Iterator[dict[str, Any]] = iter(
            track(made, "judging", total=prompts, console=Console(stderr=True), transient=True)
        )
        folder = self.run.folder / PAIRS
        report = trainer.datamodule.write_pairs(folder, shown, summary=pl_module.summary)
        for heading in ("counts", "left_out"):
            for name, count in report[heading].items():
                rank_zero_info(f"  {heading.replace('_', ' ')}, {name}: {count:,}")
        rank_zero_info(f"{report['counts']['pairs']:,} pairs are in {folder}")

    def _note(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.run is not None
        if self.is_noted:
            return
        found = {"data": trainer.datamodule.fingerprint, "answers": pl_module.fingerprint()}
        self.run.check(found)
        trainer.strategy.barrier("whose answers these are was read by all ranks")
        if trainer.is_global_zero:
            self.run.note(found)
        self.is_noted = True
