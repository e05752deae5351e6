# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a run write, entry by entry, so that a killed run loses none and the next one goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ixc_lightning.types import InputError

MAX_OPEN = 64
"""Files that are open at a time when all are read in order."""


class Lines(NamedTuple):
    """The whole lines of all parts.

    Attributes:
        rows: number of the record on each line.
        parts: file that the line is in.
        starts: its offset there.
    """

    rows: np.ndarray
    parts: np.ndarray
    starts: np.ndarray


class PartFiles:
    """Entries with a ``row`` in JSON lines, in one file for each rank of each run.

    A line that a killed process left half written is no entry: what it was about is done again.

    Args:
        folder: where the files are; it is made when something is written.
        rank: this process.
    """

    def __init__(self, folder: Path, *, rank: int) -> None:
        self.folder = folder
        self.paths = sorted(folder.glob("*.jsonl"))
        runs = [int(path.name.split("-")[0]) for path in self.paths]
        self.path = folder / f"{max(runs, default=0) + 1:04d}-{rank:05d}.jsonl"
        self.file: IO[str] | None = None

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Write entries; they are safe from the end of this process once it returns."""
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("x", encoding="utf-8")
        self.file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        self.file.flush()

    def close(self) -> None:
        """End writing."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def lines(self) -> Lines:
        """Every entry of all ranks and runs up to now, in no order.

        Raises:
            InputError: naming file and offset, if a line is no entry.
        """
        self.paths = sorted(self.folder.glob("*.jsonl"))
        found = [
            (row, number, start) for number, path in enumerate(self.paths) for row, start in _entries(path)
        ]
        table = np.array(found, dtype=np.int64).reshape(-1, 3)
        return Lines(*table.T)

    def in_order(self) -> Iterator[dict[str, Any]]:
        """Every entry once, by its row; where a row was written twice, as it first was."""
        lines = self.lines()
        order = np.lexsort((lines.parts, lines.rows))
        order = order[np.unique(lines.rows[order], return_index=True)[1]]
        files: dict[int, IO[bytes]] = {}
        try:
            for place in order.tolist():
                part = int(lines.parts[place])
                if part not in files:
                    if len(files) >= MAX_OPEN:
                        files.pop(next(iter(files))).close()
                    files[part] = self.paths[part].open("rb")
                files[part].seek(int(lines.starts[place]))
                yield json.loads(files[part].readline())
        finally:
            for file in files.values():
                file.close()


def _entries(path: Path) -> Iterator[tuple[int, int]]:
    """Row and offset of each whole line."""
    start = 0
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)["row"], start
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{path}, byte {start}: is no entry ({error}); delete the file, and what it held is "
                        "scored again"
                    ) from error
            start += len(line)
