# SPDX-License-Identifier: Apache-2.0
"""Instruction shards without the records that score low: what to remove, and the folder of the results.

FOLDER/kept/            shards of the records that stay, with the bytes of their media
FOLDER/removed/         shards of those that go
FOLDER/removed.jsonl    why each of them goes, and those that could not be read
FOLDER/report.html      a page to look at them
FOLDER/summary.json     counts, and how much planted noise was found
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.progress import track

from ixc_lightning.datamodules.cleaning_measures import NoiseLabels, measure
from ixc_lightning.datamodules.cleaning_page import write_page
from ixc_lightning.datamodules.cleaning_verdicts import Limits, Names, Part, ScoreTable, Verdicts, judge
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.scoring import ScoringDataModule
from ixc_lightning.datamodules.shard_writer import KEY, Sample, new_folder, write_shards
from ixc_lightning.types import InputError

SUMMARY = "summary.json"
Rows: TypeAlias = Callable[[], Iterator[Mapping[str, Any]]]


class CleaningDataModule(ScoringDataModule):
    """Instruction shards to be scored, and written again without those that score low.

    Arguments as in ``ScoringDataModule``, with ``kind`` instruction. With ``others`` records are ranked by
    how much better their answer scores than those of other records, see ``functional.cleaning.contrasts``.
    """

    def setup(self, stage: str) -> None:
        """Load the processor and open the shards.

        Raises:
            InputError: they are no instruction shards.
        """
        if self.kind is not Kind.INSTRUCTION:
            raise InputError(f"data.kind is {self.kind}, but only instruction shards are cleaned")
        names = [self.predict] if isinstance(self.predict, str) else self.predict or []
        if any(name.endswith(".jsonl") for name in names):
            raise InputError("data.predict: only shards are cleaned; make some with convert instructions")
        super().setup(stage)

    def prepare_cleaning(
        self,
        folder: Path,
        *,
        threshold: float | None,
        quantile: float | None,
        z_score: float | None,
        per: tuple[Part, ...],
    ) -> Limits:
        """Return the limits, once it is known that they are some and that the folder may be written.

        Args:
            folder: of the results.
            threshold: as in ``Limits``, with the others.
            quantile: likewise.
            z_score: likewise.
            per: likewise.

        Raises:
            InputError: a limit is out of its range, none is given, or the folder holds something else.
        """
        limits = Limits(threshold, quantile, z_score, per)
        limits.check()
        check_results(folder)
        return limits

    def write_cleaned(self, rows: Rows, folder: Path, *, limits: Limits, shown: int) -> dict[str, Any]:
        """Write kept and removed shards, the reasons, the page and the summary; they appear all at once.

        Results of an earlier run are replaced.

        Args:
            rows: gives the rows of the table of scores, in order, each time it is called.
            folder: where to write.
            limits: what is removed.
            shown: records on the page at most.

        Returns:
            The summary.

        Raises:
            InputError: nothing would be kept, or ``folder`` holds something else.
        """
        table = ScoreTable.read(rows(), len(self))
        verdicts = judge(table, limits)
        if not verdicts.kept.any():
            raise InputError(
                f"{folder}: of {len(self):,} records none would be kept; loosen the limits ({limits})"
            )
        # A second look at the shards: the first one, which is shared with workers, lacks the samples.
        shards = SampleShards(self.predict or "", kind=self.kind)
        labels = NoiseLabels(len(self))
        with replaced_folder(folder) as partial:
            for name, chosen in (("kept", verdicts.kept), ("removed", verdicts.removed)):
                if chosen.any():
                    samples = _samples(shards, chosen, labels, name)
                    write_shards(samples, partial / name, kind=self.kind)
            _write_lines(partial / "removed.jsonl", _reasons(rows, table, verdicts))
            summary = _summary(table, verdicts, labels)
            text = json.dumps(summary, indent=1, ensure_ascii=False)
            (partial / SUMMARY).write_text(text + "\n", encoding="utf-8")
            write_page(partial / "report.html", shards, table, verdicts, summary, shown=shown)
        shards.close()
        return summary


def check_results(folder: Path) -> None:
    """Make sure that a folder may be written, before anything is scored.

    Raises:
        InputError: it holds something that no earlier run wrote.
    """
    if folder.exists() and not (folder / SUMMARY).exists() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and holds no results of cleaning; name another folder")


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill; when the block ends it takes the place of ``folder``, an earlier run's results.

    Only one process may do so at a time.

    Raises:
        InputError: ``folder`` holds something else.
    """
    check_results(folder)
    folder = folder.absolute()
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    left_behind = folder.parent.glob(f".{new.name}.*.partial")  # by runs that were killed
    for path in (new, old, *left_behind):
        shutil.rmtree(path, ignore_errors=True)
    with new_folder(new) as partial:
        yield partial
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _samples(
    shards: SampleShards, chosen: Bool[np.ndarray, " N"], labels: NoiseLabels, name: str
) -> Iterator[Sample]:
    """The chosen samples in their order, under their keys, or numbered where these would not do."""
    numbers = np.flatnonzero(chosen)
    is_renamed = not _keys_serve(shards, numbers)
    console = Console(stderr=True)
    shown = track(
        numbers, f"writing {name}", console=console, transient=True, disable=not console.is_terminal
    )
    for number in map(int, shown):
        sample = shards.sample(number)
        labels.add(number, sample.record)
        yield sample._replace(key=f"{number:08d}") if is_renamed else sample


def _keys_serve(shards: SampleShards, numbers: np.ndarray) -> bool:
    """Whether the keys of these records may stand in one folder: each once, and as the writer wants them."""
    hashes = np.empty(len(numbers), dtype=np.int64)
    for place, number in enumerate(numbers.tolist()):
        key = shards.place(number)[1]
        if not KEY.fullmatch(key):
            return False
        hashes[place] = hash(key)
    return len(np.unique(hashes)) == len(hashes)


def _reasons(rows: Rows, table: ScoreTable, verdicts: Verdicts) -> Iterator[dict[str, Any]]:
    """What is not kept, in the order of the data."""
    for row in rows():
        number = row["row"]
        if row["error"] is not None:
            place = {name: row[name] for name in ("row", "shard", "key")}
            yield {**place, "reasons": [f"cannot be read or scored: {row['error']}"]}
        elif verdicts.removed[number] and table.is_own(row):
            yield {
                **{name: row[name] for name in ("row", "shard", "key", "domain", "modality", "score")},
                **({"contrast": float(table.value[number])} if table.is_contrast else {}),
                "z_score": float(verdicts.z_score[number]),
                "reasons": verdicts.reasons(number, table),
            }


def _summary(table: ScoreTable, verdicts: Verdicts, labels: NoiseLabels) -> dict[str, Any]:
    rankings = {table.value_name: table.value, "score": table.score, "z_score": verdicts.z_score}
    return {
        "records": len(table.value),
        "kept": int(verdicts.kept.sum()),
        "removed": int(verdicts.removed.sum()),
        "unreadable": int(table.is_bad.sum()),
        "limits": verdicts.limits._asdict(),
        "removed_by": {name: int(chosen.sum()) for name, chosen in verdicts.by_limit.items()},
        "domains": _counts(table.domains, table, verdicts),
        "modalities": _counts(table.modalities, table, verdicts),
        "planted_noise": measure(
            labels,
            rankings,
            verdicts.removed,
            by=verdicts.ranked_by(table),
            groups={"domain": table.domains, "modality": table.modalities},
        ),
    }


def _counts(parts: Names, table: ScoreTable, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    counts = {}
    for code, part in enumerate(parts.names):
        own = (parts.codes == code) & ~table.is_bad
        counts[part] = {
            "records": int(own.sum()),
            "removed": int((own & verdicts.removed).sum()),
            f"median_{table.value_name}": float(np.median(table.value[own])),
        }
    return counts


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
