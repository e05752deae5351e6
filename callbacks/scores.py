# SPDX-License-Identifier: Apache-2.0
"""Scores on the disk: while they are made, so that a killed run goes on, and in one table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.callbacks.resuming import RunFolder
from ixc_lightning.callbacks.tables import check_parquet, write_jsonl, write_parquet

COLUMNS = {
    "row": "int64",
    "shard": "string",
    "key": "string",
    "domain": "string",
    "modality": "string",
    "response": "string",
    "tokens": "int64",
    "score": "float64",
    "normalised_score": "float64",
    "error": "string",
}
"""Of the tables, with pyarrow's names of their types."""


class ScoreWriter(Callback):
    """Writes ``scores.jsonl`` and ``scores.parquet``: one row per response, in the order of the data.

    A record that could not be scored has one row with its ``error``. Every batch is written below ``parts/``
    when it is scored, by each rank for itself; a run that is started again with the same folder goes on
    there, on any number of ranks, and scores nothing twice. The tables appear when all is scored.

    Logs ``predict/responses_per_second`` and ``predict/tokens_per_second`` (of the responses), of all ranks.

    Needs a datamodule with ``leave_out`` and ``fingerprint``, and a module whose ``predict_step`` returns a
    list of entries with ``row``, and which has ``fingerprint``. Does nothing but in ``predict``.

    Args:
        folder: where to write; null is ``scores`` in the trainer's ``default_root_dir``.
        formats: of the tables.

    Attributes:
        is_complete: whether this process has written the tables of all records.
    """

    def __init__(
        self,
        folder: str | None = None,
        formats: Sequence[Literal["jsonl", "parquet"]] = ("jsonl", "parquet"),
    ) -> None:
        self.given = folder
        self.formats = tuple(formats)
        self.run: RunFolder | None = None
        self.is_noted = False
        self.is_complete = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find what an earlier run has scored, and have the datamodule leave it out.

        Raises:
            InputError: the folder belongs to another run, or no parquet can be written.
        """
        if stage != "predict":
            return
        if "parquet" in self.formats:
            check_parquet()
        self.folder = Path(self.given or Path(trainer.default_root_dir) / "scores").expanduser()
        self.run = RunFolder(self.folder, trainer)
        self.is_noted = self.is_complete = False
        self.run.check({"data": trainer.datamodule.fingerprint})
        done = self.run.done()
        trainer.strategy.barrier("what is scored was read by all ranks")
        trainer.datamodule.leave_out(done)
        if len(done):
            rank_zero_info(f"{self.folder}: {len(set(done.tolist())):,} records are scored already")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note whose scores these are, and start the clock."""
        if self.run is None:
            return
        trainer.predict_loop.return_predictions = False  # they are on the disk, and may be many
        self._note(trainer, pl_module)
        self.started = time.perf_counter()
        self.responses = self.tokens = 0

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the batch's entries, and log how fast they come."""
        assert self.run is not None
        self.run.parts.append(outputs)
        made = [response for entry in outputs for response in entry.get("responses", ())]
        self.responses += len(made)
        self.tokens += sum(response["tokens"] for response in made)
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                logger.log_metrics(self._rates(trainer), batch_idx + 1)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how fast it went."""
        rates = self._rates(trainer)
        for logger in trainer.loggers:
            logger.log_metrics(rates, trainer.predict_loop.batch_progress.current.completed)
        shown = ", ".join(f"{value:,.1f} {name.split('/')[1].split('_')[0]}" for name, value in rates.items())
        rank_zero_info(f"scored {shown} a second")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the tables if all is scored; Lightning comes here only if all went well."""
        if self.run is None:
            return
        self._note(trainer, pl_module)
        self.run.parts.close()
        trainer.strategy.barrier("every rank has written its scores")
        if trainer.is_global_zero:
            self._write_tables(len(trainer.datamodule))
        self.run.close()
        trainer.strategy.barrier("the tables are written")
        self.run = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Let another run have the folder."""
        if self.run is not None:
            self.run.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the tables, in order."""
        assert self.run is not None
        for entry in self.run.parts.in_order():
            known = {name: entry[name] for name in COLUMNS if name in entry}
            for response in entry.get("responses", [{}]):
                own = {name: response[name] for name in COLUMNS if name in response}
                row = known | own | ({"response": response["name"]} if response else {})
                yield {name: row.get(name) for name in COLUMNS}

    def _write_tables(self, records: int) -> None:
        assert self.run is not None
        done = len(set(self.run.done().tolist()))
        if done < records:
            rank_zero_info(
                f"{done:,} of {records:,} records are scored; run again with this folder for the rest"
            )
            return
        if "jsonl" in self.formats:
            write_jsonl(self.folder / "scores.jsonl", self.rows())
        if "parquet" in self.formats:
            write_parquet(self.folder / "scores.parquet", self.rows(), COLUMNS)
        self.is_complete = True
        rank_zero_info(f"The scores of {records:,} records are in {self.folder}")

    def _rates(self, trainer: L.Trainer) -> dict[str, float]:
        per_second = trainer.world_size / (time.perf_counter() - self.started)
        return {
            "predict/responses_per_second": self.responses * per_second,
            "predict/tokens_per_second": self.tokens * per_second,
        }

    def _note(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.run is not None
        if self.is_noted:
            return
        found = {"data": trainer.datamodule.fingerprint, "model": pl_module.fingerprint()}
        self.run.check(found)
        trainer.strategy.barrier("whose scores these are was read by all ranks")
        if trainer.is_global_zero:
            self.run.note(found)
        self.is_noted = True
