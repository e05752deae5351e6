# SPDX-License-Identifier: Apache-2.0
"""A data set without its lowest-scored records, written when all are scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.callbacks.scores import ScoreWriter
from ixc_lightning.types import InputError


class CleanedDataWriter(ScoreWriter):
    """Scores as ``ScoreWriter`` does, then writes what to keep, what to remove, and a page to look at it.

    A record is removed if it is below any of the limits. A run that was stopped goes on where it was; one
    with other limits and the same folders scores nothing anew, and replaces the results.

    Needs a datamodule with ``write_cleaned``, as ``CleaningDataModule`` is. When all ranks have scored, the
    first one writes, and the others are done.

    Args:
        folder: for the scores; null is ``scores`` in the trainer's ``default_root_dir``.
        results: for all else; null is ``cleaned`` there.
        threshold: records that score lower are removed, or whose contrast is lower where the datamodule adds
            answers of others.
        quantile: share of the records; the lowest ones of it are removed.
        z_score: removed is what lies lower, in robust standard deviations from the median of its group, say
            −3.
        per: what makes a group: ``domain``, ``modality``, or both.
        shown: most removed records on the page.
    """

    def __init__(
        self,
        folder: str | None = None,
        results: str | None = None,
        *,
        threshold: float | None = None,
        quantile: float | None = None,
        z_score: float | None = None,
        per: Sequence[Literal["domain", "modality"]] = ("domain",),
        shown: int = 200,
    ) -> None:
        super().__init__(folder, formats=("jsonl",))
        if shown < 1:
            raise InputError(f"shown is {shown}, but the page shows at least 1 record")
        self.given_results = results
        self.threshold = threshold
        self.quantile = quantile
        self.z_score = z_score
        self.per = tuple(per)
        self.shown = shown

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make sure that the results can be written, and find what an earlier run has scored.

        Raises:
            InputError: the limits are none, or a folder belongs to something else.
        """
        if stage != "predict":
            return
        if not hasattr(trainer.datamodule, "write_cleaned"):
            raise InputError(
                "CleanedDataWriter needs shards to clean: set data.class_path to "
                "ixc_lightning.datamodules.CleaningDataModule"
            )
        self.results = Path(self.given_results or Path(trainer.default_root_dir) / "cleaned").expanduser()
        self.limits = trainer.datamodule.prepare_cleaning(
            self.results,
            threshold=self.threshold,
            quantile=self.quantile,
            z_score=self.z_score,
            per=self.per,
        )
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the table of scores, and once it is whole, the results."""
        ends_a_run = self.run is not None
        super().teardown(trainer, pl_module, stage)
        # Behind the last barrier: writing may take longer than ranks wait for each other.
        if ends_a_run and trainer.is_global_zero and self.is_complete:
            with FileLock(self.folder / ".lock"):
                summary = trainer.datamodule.write_cleaned(
                    self.table_rows, self.results, limits=self.limits, shown=self.shown
                )
            for line in _told(summary):
                rank_zero_info(line)
            rank_zero_info(f"Kept and removed records, the reasons and report.html are in {self.results}")

    def table_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the table of scores on the disk, in order."""
        with (self.folder / "scores.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _told(summary: dict[str, Any]) -> Iterator[str]:
    """What a run says at its end."""
    yield (
        f"{summary['records']:,} records: {summary['kept']:,} kept, {summary['removed']:,} removed, "
        f"{summary['unreadable']:,} unreadable"
    )
    found = summary["planted_noise"]
    if found:
        areas = {**found["auc_by_ranking"], **found["auc_by_kind"], **found["auc_by_modality"]}
        shown = ", ".join(f"{name} {area:.3f}" for name, area in areas.items() if area is not None)
        yield f"area under the ROC curve by {found['ranked_by']} {found['auc']:.3f} ({shown})"
        for point in [*found["lowest"], found["removed"]]:
            if point["precision"] is not None:
                kinds = ", ".join(f"{name} {recall:.2f}" for name, recall in point["recall_by_kind"].items())
                yield (
                    f"the lowest {point['removed']:,}: precision {point['precision']:.2f}, "
                    f"recall {point['recall']:.2f} ({kinds})"
                )
