# SPDX-License-Identifier: Apache-2.0
"""The shards of a data set, in runs: whole folders by their tables, and shards that were named one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ixc_lightning.datamodules.folders import Place, inside
from ixc_lightning.datamodules.manifest import Manifest
from ixc_lightning.datamodules.remote import is_remote, shown
from ixc_lightning.datamodules.shard_table import ShardRow, ShardTable
from ixc_lightning.types import InputError


class ShardRun(ABC):
    """Shards that follow each other in a data set, all at one sort of place.

    Attributes:
        table: a row for each of them.
        domains: names of their domains.
        is_remote: whether they lie at an address.
    """

    table: ShardTable
    domains: Sequence[str]
    is_remote: bool

    def __len__(self) -> int:
        return len(self.table)

    @abstractmethod
    def __getitem__(self, number: int) -> Place:
        """Return the path or URL of a shard."""

    @abstractmethod
    def __iter__(self) -> Iterator[Place]:
        """Give the path or URL of every shard."""

    @abstractmethod
    def find(self, name: str) -> int | None:
        """Return the number of the shard that is shown under this name, or None."""


class FolderShards(ShardRun):
    """The shards of a folder, as its manifest lists them; none is looked at, and none takes memory.

    Args:
        folder: path or URL.
        manifest: of the folder.
    """

    def __init__(self, folder: Place, manifest: Manifest) -> None:
        self.folder = folder
        self.table = manifest.shards
        self.domains = list(manifest.domains)
        self.is_remote = not isinstance(folder, Path)

    def __getitem__(self, number: int) -> Place:
        """Return the path or URL of a shard; raises ``InputError`` if its name leads out of the folder."""
        return self._inside(self.table[number].file)

    def __iter__(self) -> Iterator[Place]:
        return (self._inside(self.table.file(number)) for number in range(len(self)))

    def find(self, name: str) -> int | None:
        """Return the number of the shard that is shown under this name, or None."""
        before, after = shown(inside(self.folder, "\0")).split("\0")
        if not (name.startswith(before) and name.endswith(after)):
            return None
        return self.table.find(name[len(before) : len(name) - len(after)])

    def _inside(self, file: str) -> Place:
        if "/" in file or "\0" in file or file in (".", ".."):
            raise InputError(
                f"{shown(self.folder)}: its manifest lists {file!r}, which is no file of it; "
                "run `index` on the folder"
            )
        return inside(self.folder, file)


class NamedShards(ShardRun):
    """Shards that were looked at one by one.

    Args:
        places: their paths, or their URLs.
        table: a row for each of them.
        domains: names of their domains.
    """

    def __init__(self, places: Sequence[Place], table: ShardTable, domains: Sequence[str]) -> None:
        self.places = places
        self.table = table
        self.domains = domains
        self.is_remote = any(map(is_remote, places))
        self._numbers = {shown(place): number for number, place in enumerate(places)}

    def __getitem__(self, number: int) -> Place:
        """Return the path or URL of a shard."""
        return self.places[number]

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def find(self, name: str) -> int | None:
        """Return the number of the shard that is shown under this name, or None."""
        return self._numbers.get(name)


class ShardList(Sequence[Place]):
    """All shards of a data set, numbered through, and its samples with them.

    Args:
        runs: what the data set consists of, in its order.
    """

    def __init__(self, runs: Sequence[ShardRun]) -> None:
        self.runs = runs
        self._shards_before = _before(map(len, runs))
        self._samples_before = _before(run.table.total for run in runs)

    def __len__(self) -> int:
        return int(self._shards_before[-1])

    def __getitem__(self, number: int) -> Place:  # type: ignore[override]
        """Return the path or URL of a shard."""
        run, within = self._run(number)
        return run[within]

    def __iter__(self) -> Iterator[Place]:
        return chain.from_iterable(self.runs)

    @property
    def samples(self) -> int:
        """Number of samples of all shards."""
        return int(self._samples_before[-1])

    @cached_property
    def counts(self) -> Int64[np.ndarray, " S"]:
        """Number of samples of every shard; of one run that of its table, without a copy."""
        return _joined([run.table.samples for run in self.runs])

    @cached_property
    def bytes(self) -> Int64[np.ndarray, " S"]:
        """Size of every shard; of one run that of its table, without a copy."""
        return _joined([run.table.bytes for run in self.runs])

    @property
    def ends(self) -> Int64[np.ndarray, " S"]:
        """Number of samples up to the end of every shard."""
        before = self._samples_before[:-1].tolist()
        ends = [run.table.ends for run in self.runs]
        return _joined([end + first if first else end for end, first in zip(ends, before, strict=True)])

    @property
    def remote_bytes(self) -> Int64[np.ndarray, " S"]:
        """Size of every shard that lies at an address, and 0 for those on a disk."""
        return _joined(
            [
                run.table.bytes if run.is_remote else np.broadcast_to(np.int64(0), len(run))
                for run in self.runs
            ]
        )

    def row(self, number: int) -> ShardRow:
        """Return what is known of a shard."""
        run, within = self._run(number)
        return run.table[within]

    def first(self, number: int) -> int:
        """Return the number of the first sample of a shard."""
        run, within = self._run(number)
        before = int(run.table.ends[within - 1]) if within else 0
        return int(self._samples_before[self._shards_before.searchsorted(number, "right") - 1]) + before

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the number of the shard that holds a sample, and the number of the sample in it."""
        run = int(self._samples_before.searchsorted(sample, side="right")) - 1
        within, offset = self.runs[run].table.locate(sample - int(self._samples_before[run]))
        return int(self._shards_before[run]) + within, offset

    def find(self, name: str) -> int | None:
        """Return the number of the shard that is shown under this name, or None."""
        for run, before in zip(self.runs, self._shards_before.tolist(), strict=False):
            if (within := run.find(name)) is not None:
                return before + within
        return None

    def __getstate__(self) -> dict[str, Any]:
        # What is computed from the runs is computed anew: of a table on a disk it is no copy.
        return {name: value for name, value in self.__dict__.items() if name not in ("counts", "bytes")}

    def _run(self, number: int) -> tuple[ShardRun, int]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        number %= len(self)
        run = int(self._shards_before.searchsorted(number, side="right")) - 1
        return self.runs[run], number - int(self._shards_before[run])


def _before(sizes: Iterable[int]) -> Int64[np.ndarray, " _"]:
    """Return how much lies before each run, and behind the last one."""
    return np.cumsum([0, *sizes], dtype=np.int64)


def _joined(columns: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " S"]:
    return columns[0] if len(columns) == 1 else np.concatenate([*columns, np.arange(0)])
