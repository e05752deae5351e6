# SPDX-License-Identifier: Apache-2.0
"""What is known of each of many shards, in columns that are mapped and not read.

A table of a million shards opens as quickly as one of ten: its file is mapped into memory, all processes of a
machine share the pages, and a row is made when it is asked for. The file is one of safetensors, whose header
is checked by that library; nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ixc_lightning.datamodules.record_checks import shortened
from ixc_lightning.types import InputError

CHECKED = 1 << 13
"""Rows that are checked at a time, so that a check takes little memory."""
MAX_NAME = 1 << 16
"""Bytes of a name; a path has fewer on any system."""
MOST = (1 << 63) - 1
"""Samples or bytes of all shards together: what a column can hold."""
DIGEST = hashlib.sha256().digest_size


class ShardRow(NamedTuple):
    """What a table says of a shard.

    Attributes:
        file: name of the tar; in a table that belongs to no folder, its path or URL.
        samples: number of its samples.
        bytes: size of the tar.
        sha256: checksum of the tar in hexadecimal; empty if it is not known.
    """

    file: str
    samples: int
    bytes: int
    sha256: str


class ShardTable(Sequence[ShardRow]):
    """Rows about shards, kept in columns.

    Args:
        columns: of the file, by name: ``samples``, ``bytes`` and ``sha256`` of each shard, ``ends`` (sum of
            the samples up to the end of each), ``names`` (one behind the other, in UTF-8), ``name_ends``.
        name: of the file, for messages.

    Raises:
        InputError: naming the file, if a column is missing or of another type or length.

    Attributes:
        ends: number of samples up to the end of every shard.
    """

    ends: Int64[np.ndarray, " S"]

    def __init__(self, columns: dict[str, np.ndarray], *, name: str) -> None:
        self._name = name
        self._path: Path | None = None
        try:
            self.ends, self._samples, self._bytes = columns["ends"], columns["samples"], columns["bytes"]
            self._names, self._name_ends = columns["names"], columns["name_ends"]
            self._sha256 = columns["sha256"]
        except KeyError as error:
            raise self._damage(f"column {error} is missing") from None
        numbers = (self.ends, self._samples, self._bytes, self._name_ends)
        if any(column.dtype != np.int64 or column.shape != (self.ends.size,) for column in numbers):
            raise self._damage("a column of numbers has another type or length")
        if self._names.dtype != np.uint8 or self._names.ndim != 1:
            raise self._damage("the names are no bytes")
        if self._sha256.dtype != np.uint8 or self._sha256.shape != (len(self), DIGEST):
            raise self._damage("the checksums are not those of as many shards")

    @classmethod
    def of(cls, rows: Iterable[ShardRow]) -> ShardTable:
        """Return the table of some rows, in their order.

        Raises:
            ValueError: a number is negative or too large, or a checksum is no SHA-256.
        """
        rows = list(rows)
        names = [os.fsencode(row.file) for row in rows]
        digests = [bytes.fromhex(row.sha256 or "00" * DIGEST) for row in rows]
        if any(len(digest) != DIGEST for digest in digests):
            raise ValueError("a checksum is no SHA-256")
        counts = [row.samples for row in rows]
        sizes = [row.bytes for row in rows]
        if min([*counts, *sizes], default=0) < 0 or max(sum(counts), sum(sizes)) > MOST:
            raise ValueError("a number is negative or too large")
        samples = _numbers(counts)
        columns = {
            "samples": samples,
            "ends": np.cumsum(samples),
            "bytes": _numbers(sizes),
            "name_ends": np.cumsum(_numbers(map(len, names))),
            "names": np.frombuffer(b"".join(names), dtype=np.uint8),
            "sha256": np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(rows), DIGEST),
        }
        return cls(columns, name="shards")

    @classmethod
    def open(cls, path: Path, *, name: str, lease: BinaryIO | None = None) -> ShardTable:
        """Return the table of a file, which is mapped and not read.

        Args:
            path: of the file that ``save`` wrote.
            name: of the file, for messages.
            lease: stays open as long as the table lives: the claim on a file in a cache.

        Raises:
            InputError: naming the file, if it cannot be read, is cut off, or is none.
        """
        try:
            with safe_open(path, framework="pt") as file:  # of its frameworks, the one that maps
                columns = {column: file.get_tensor(column).numpy() for column in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise InputError(
                f"{name}: no such file, but the manifest beside it names it; copy both again"
            ) from None
        except (SafetensorError, OSError, TypeError, RuntimeError) as error:
            raise _damaged(name, str(error).splitlines()[0]) from None
        table = cls(columns, name=name)
        table._path = path.absolute()
        if lease is not None:
            weakref.finalize(table, lease.close)
        return table

    def save(self, path: Path) -> None:
        """Write the table to a file; the same rows give the same bytes."""
        save_file(self._columns(), path)

    @cached_property
    def samples(self) -> Int64[np.ndarray, " S"]:
        """Number of samples of every shard; raises ``InputError`` if they are not those of ``ends``."""
        before = 0
        for start in range(0, len(self), CHECKED):
            ends, counts = self.ends[start : start + CHECKED], self._samples[start : start + CHECKED]
            if (counts < 0).any() or (counts > ends).any() or (np.diff(ends, prepend=before) != counts).any():
                raise self._damage("the numbers of samples do not add up")
            before = int(ends[-1])
        return self._samples

    @cached_property
    def bytes(self) -> Int64[np.ndarray, " S"]:
        """Size of every shard; raises ``InputError`` if one is negative."""
        if any((self._bytes[start : start + CHECKED] < 0).any() for start in range(0, len(self), CHECKED)):
            raise self._damage("a size is negative")
        return self._bytes

    @property
    def total(self) -> int:
        """Number of samples of all shards."""
        return int(self.ends[-1]) if len(self) else 0

    def __len__(self) -> int:
        return self.ends.size

    @overload
    def __getitem__(self, number: int) -> ShardRow: ...
    @overload
    def __getitem__(self, number: slice) -> list[ShardRow]: ...
    def __getitem__(self, number: int | slice) -> ShardRow | list[ShardRow]:
        """Return a row; raises ``InputError`` naming the file if what it says cannot be."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        number %= len(self)
        start, end = _span(self.ends, number)
        samples, size = int(self._samples[number]), int(self._bytes[number])
        if not 0 <= start <= end or end - start != samples or size < 0:
            raise self._damage(f"the numbers of shard {number:,} cannot be")
        digest = self._sha256[number].tobytes()
        return ShardRow(self.file(number), samples, size, digest.hex() if any(digest) else "")

    def __iter__(self) -> Iterator[ShardRow]:
        return (self[number] for number in range(len(self)))

    def file(self, number: int) -> str:
        """Return the name of a shard; raises ``InputError`` naming the table's file if it cannot be one."""
        start, end = _span(self._name_ends, number)
        if not 0 <= start < end <= len(self._names) or end - start > MAX_NAME:
            raise self._damage(f"the name of shard {number:,} is not where it should be")
        return os.fsdecode(self._names[start:end].tobytes())

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the number of the shard that holds a sample, and the number of the sample in it.

        Raises:
            InputError: naming the file, if its columns contradict each other there.
        """
        number = int(np.searchsorted(self.ends, sample, side="right"))
        start, end = _span(self.ends, min(number, len(self) - 1))
        if not start <= sample < end:
            raise self._damage("the sums of its samples do not ascend")
        return number, sample - start

    def find(self, file: str) -> int | None:
        """Return the number of the shard of this name, or None; the rows must be sorted by their names."""
        number = bisect_left(range(len(self)), file, key=self.file)
        return number if number < len(self) and self.file(number) == file else None

    def __eq__(self, other: object) -> bool:
        """Whether another table has the same rows."""
        return isinstance(other, ShardTable) and all(
            np.array_equal(mine, its)
            for mine, its in zip(self._columns().values(), other._columns().values(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that is spawned maps the file as well, where pickled columns would be copied.
        if self._path is not None:
            return partial(ShardTable.open, name=self._name), (self._path,)
        return partial(ShardTable, name=self._name), (self._columns(),)

    def _columns(self) -> dict[str, np.ndarray]:
        return {
            "ends": self.ends,
            "samples": self._samples,
            "bytes": self._bytes,
            "names": self._names,
            "name_ends": self._name_ends,
            "sha256": self._sha256,
        }

    def _damage(self, problem: str) -> InputError:
        return _damaged(self._name, problem)


def _span(ends: Int64[np.ndarray, " S"], number: int) -> tuple[int, int]:
    return int(ends[number - 1]) if number else 0, int(ends[number])


def _numbers(values: Iterable[int]) -> Int64[np.ndarray, " S"]:
    return np.fromiter(values, dtype=np.int64)


def _damaged(name: str, problem: str) -> InputError:
    return InputError(
        f"{name}: is no table of shards ({shortened(problem)}); copy it again, or run `index` on its folder"
    )
