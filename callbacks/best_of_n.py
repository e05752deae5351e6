# SPDX-License-Identifier: Apache-2.0
"""Best of N on the disk and in TensorBoard: all candidates, the ones to keep, and the curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.callbacks.curves import draw_curves
from ixc_lightning.callbacks.parts import PartFiles
from ixc_lightning.callbacks.tables import replaced, write_jsonl

TITLES = {"score": "score", "tokens": "tokens", "correct": "share that is right"}
"""Of the charts of the curve."""


class BestOfNWriter(Callback):
    """Writes what a policy's candidates are worth, in the order of the prompts.

    ``candidates.jsonl`` has a line for each prompt with all its candidates; ``best.jsonl`` one with the
    candidate of the highest score. ``curve.json`` holds, for every n up to N, the expected score of the best
    of n, its mean length in tokens, and the share of right ones among prompts with an answer, each as the
    unbiased estimate from all N; ``curve.png`` shows it. TensorBoard has the
    picture, and ``best_of_n/<quantity>`` with n as its step.

    Needs a module whose ``predict_step`` returns entries with ``row``, ``best`` and ``candidates``, and
    which has ``curve``. Does nothing but in ``predict``.

    Args:
        folder: where to write, replacing what is there; null is ``best_of_n`` in the trainer's
            ``default_root_dir``.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.given = folder
        self.parts: PartFiles | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take away what an earlier run left behind."""
        trainer.predict_loop.return_predictions = False  # they are on the disk, and may be many
        self.folder = Path(self.given or Path(trainer.default_root_dir) / "best_of_n").expanduser()
        parts = self.folder / "parts"
        if trainer.is_global_zero:
            shutil.rmtree(parts, ignore_errors=True)
        trainer.strategy.barrier("old candidates are gone")
        self.parts = PartFiles(parts, rank=trainer.global_rank)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the batch's candidates."""
        assert self.parts is not None
        self.parts.append(outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the tables and the curve, on the first rank."""
        assert self.parts is not None
        self.parts.close()
        trainer.strategy.barrier("every rank has written its candidates")
        if trainer.is_global_zero:
            self._finish(trainer, pl_module)
        trainer.strategy.barrier("the curve is written")

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.parts is not None
        write_jsonl(self.folder / "candidates.jsonl", self.parts.in_order())
        write_jsonl(self.folder / "best.jsonl", map(_best, self.parts.in_order()))
        curve = pl_module.curve(self.parts.in_order())
        size = len(curve["score"])
        rows = [{"n": n + 1, **{name: values[n] for name, values in curve.items()}} for n in range(size)]
        with replaced(self.folder / "curve.json") as unfinished:
            unfinished.write_text(json.dumps(rows, indent=2) + "\n")
        picture = draw_curves({TITLES[name]: values for name, values in curve.items()}, x_name="best of n")
        with replaced(self.folder / "curve.png") as unfinished:
            picture.save(unfinished, "PNG")
        for logger in trainer.loggers:
            for n, row in enumerate(rows, start=1):
                logger.log_metrics({f"best_of_n/{name}": row[name] for name in curve}, n)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("best_of_n", np.asarray(picture), size, dataformats="HWC")
        for row in (rows[0], rows[-1]):
            shown = ", ".join(f"{TITLES[name]} {row[name]:.3f}" for name in curve)
            rank_zero_info(f"best of {row['n']}: {shown}")
        shutil.rmtree(self.folder / "parts")
        rank_zero_info(f"All candidates, the best ones and the curve are in {self.folder}")


def _best(entry: dict[str, Any]) -> dict[str, Any]:
    kept = entry["candidates"][entry["best"]]
    rest = {name: value for name, value in entry.items() if name not in ("candidates", "best")}
    return {**rest, **kept, "candidate": entry["best"], "of": len(entry["candidates"])}
