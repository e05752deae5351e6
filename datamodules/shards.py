# SPDX-License-Identifier: Apache-2.0
"""Reading of WebDataset shards as a map-style data set: any record by its number, in any process.

Members are read at the offsets of the index, never through an unpickling decoder. ``shard_writer`` writes
them. In memory are a few numbers per shard; the index of a shard is read when one of its records is.
"""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from ixc_lightning.datamodules.index import BLOCK, Entry, OnDamage, index_path, read_entries, read_header
from ixc_lightning.datamodules.patterns import expand_shards
from ixc_lightning.datamodules.records import Kind, Place, parse_record
from ixc_lightning.datamodules.shard_writer import MANIFEST, Manifest
from ixc_lightning.types import MODALITIES, InputError, Record

MAX_OPEN_SHARDS = 64
"""Files that one process keeps open, and indices that it keeps in memory; the oldest goes first."""
TAR_NAME_LENGTH = 100
"""Longer member names, and names beyond ASCII, are not whole in the tar header."""


class ShardDataset(Dataset[Record]):
    """The records of a set of shards, by number: shards in the order given, records in that of their tar.

    Args:
        shards: a tar, a folder with tars, a glob pattern or a brace pattern (``train-{000000..000015}.tar``),
            or a list of them.
        kind: the kind of record that every shard holds: preference, instruction or prompt.
        on_damage: called with what cannot be read of a damaged shard, whose other records are used; without
            it, damage raises.

    Raises:
        InputError: naming the path, if nothing is there, or a shard is no tar, is cut off, or is not that of
            its index.

    Attributes:
        paths: path of every shard.
        kind: as given.
        counts: number of records of every shard.
        domains: names of the domains that occur, sorted.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        kind: Kind | str,
        on_damage: OnDamage | None = None,
    ) -> None:
        self.kind = Kind(kind)
        self.paths = expand_shards(shards, kind=self.kind)
        self._scanned: dict[int, list[Entry]] = {}
        listed = _listed({path.parent for path in self.paths})
        surveys = [
            self._survey(number, path, listed.get(path), on_damage) for number, path in enumerate(self.paths)
        ]
        self.counts = np.array([samples for samples, _ in surveys], dtype=np.int64)
        if not self.counts.sum():
            raise InputError(f"{shards}: the shards hold no samples; check that they were written to the end")
        self.domains = sorted(set().union(*(domains for _, domains in surveys)))
        self._ends = np.cumsum(self.counts)
        self._numbers = {str(path): number for number, path in enumerate(self.paths)}
        self._entries: OrderedDict[int, list[Entry]] = OrderedDict()
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        """Return record ``index``, with the bytes of its media; raises as ``record``."""
        return self.record(index)

    def record(self, index: int, *, media: bool = True) -> Record:
        """Return record ``index``.

        Args:
            index: number of the record; negative ones count from the end.
            media: read the media too; without them ``Record.media`` is empty.

        Raises:
            InputError: naming shard, key and field, if the record is not valid or the shard has changed.
            IndexError: if there is no such record.
        """
        shard, entry = self._find(index)
        path = str(self.paths[shard])
        if "json" not in entry.members:
            raise Place(path, entry.key).error("json", f"is missing; add a member {entry.key}.json")
        files = {
            field: self._read(shard, entry, field) if media else b""
            for field in entry.members
            if field != "json"
        }
        data = self._read(shard, entry, "json")
        record = parse_record(data, files, kind=self.kind, shard=path, key=entry.key)
        return record if media else replace(record, media={})

    def place(self, index: int) -> tuple[str, str]:
        """Return shard and key of record ``index``, without reading it; raises if the index is damaged."""
        shard, entry = self._find(index)
        return str(self.paths[shard]), entry.key

    def name(self, index: int) -> str:
        """Return ``shard:key`` of record ``index``, without reading it."""
        return ":".join(self.place(index))

    def named(self, name: str) -> Record:
        """Return the record of this ``shard:key``.

        Raises:
            KeyError: if there is none.
        """
        path, _, key = name.rpartition(":")
        shard = self._numbers[path]
        keys = [entry.key for entry in self._index(shard)]
        if key not in keys:
            raise KeyError(name)
        return self.record(int(self._ends[shard] - self.counts[shard]) + keys.index(key))

    def modality(self, index: int) -> str:
        """Return the modality of record ``index``, without reading it."""
        return self._find(index)[1].modality

    def domain(self, index: int) -> str:
        """Return the domain of record ``index``, without reading it; empty if reading it raises."""
        return self._find(index)[1].domain

    def costs(self, indices: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Numbers by which records sort by their length: modality, number of pictures, then bytes of text.

        They are of the index alone, no tokenizer is asked. Nobody needs them to be exact.
        """
        return np.array([_cost(self._find(int(index))[1]) for index in indices], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_entries": OrderedDict()}

    def _survey(
        self, number: int, path: Path, listed: Listed | None, on_damage: OnDamage | None
    ) -> tuple[int, Iterable[str]]:
        """Return samples and domains of a shard: from manifest or sidecar, else by a scan that is kept."""
        has_index = index_path(path).exists()
        if has_index and listed and listed.bytes == path.stat().st_size:
            return listed.samples, listed.domains
        if has_index:
            try:
                header = read_header(path)
                return header.samples, header.domains
            except InputError:
                if on_damage is None:
                    raise
        self._scanned[number] = read_entries(path, on_damage=on_damage)
        return len(self._scanned[number]), {entry.domain for entry in self._scanned[number]} - {""}

    def _find(self, index: int) -> tuple[int, Entry]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, self._index(shard)[index - int(self._ends[shard])]

    def _index(self, shard: int) -> list[Entry]:
        """Return the entries of a shard, kept for its next record."""
        if shard in self._scanned:
            return self._scanned[shard]
        if shard not in self._entries:
            if len(self._entries) >= MAX_OPEN_SHARDS:
                self._entries.popitem(last=False)
            entries = read_entries(self.paths[shard])
            if len(entries) != self.counts[shard]:
                problem = f"holds {len(entries)} records, but held {self.counts[shard]} when it was opened"
                raise InputError(f"{self.paths[shard]}: {problem}; start again")
            self._entries[shard] = entries
        self._entries.move_to_end(shard)
        return self._entries[shard]

    def _read(self, shard: int, entry: Entry, field: str) -> bytes:
        """Return the bytes of a member; the header before it must be its own, else the shard has changed."""
        offset, size = entry.members[field]
        block = os.pread(self._open(shard), BLOCK + size, offset - BLOCK)
        if len(block) < BLOCK + size or not _is_header(block[:BLOCK], f"{entry.key}.{field}", size):
            problem = f"member {entry.key}.{field} is not where the index says; the shard has changed"
            raise InputError(f"{self.paths[shard]}: {problem}. Delete its .index.jsonl, or copy both again")
        return block[BLOCK:]

    def _open(self, shard: int) -> int:
        """Return the descriptor of a shard; reads name their offset, so forked processes may share it."""
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
            try:
                self._files[shard] = self.paths[shard].open("rb", buffering=0)
            except OSError as error:
                raise InputError(
                    f"{self.paths[shard]}: cannot be read ({error.strerror}); was it moved?"
                ) from None
        self._files.move_to_end(shard)
        return self._files[shard].fileno()

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def __del__(self) -> None:
        if "_files" in self.__dict__:
            self.close()


class Listed(NamedTuple):
    """What the manifest of its folder says of a shard, and of the folder's domains."""

    samples: int
    bytes: int
    domains: Iterable[str]


def _listed(folders: Iterable[Path]) -> dict[Path, Listed]:
    """What the manifests of folders say, by shard; one file saves a look into every sidecar."""
    manifests = {folder: Manifest.load(folder) for folder in folders if (folder / MANIFEST).exists()}
    return {
        folder / shard["file"]: Listed(shard["samples"], shard["bytes"], manifest.domains)
        for folder, manifest in manifests.items()
        for shard in manifest.shards
    }


def _cost(entry: Entry) -> int:
    """Bits above 40: modality; above 32: number of media, at most 255; below: bytes of the JSON."""
    media = min(len(entry.members) - 1, 255)
    length = min(entry.members.get("json", (0, 0))[1], 2**32 - 1)
    return MODALITIES.index(entry.modality) << 40 | media << 32 | length


def _is_header(block: bytes, name: str, size: int) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    whole = len(name) <= TAR_NAME_LENGTH and name.isascii()
    return header.size == size and (not whole or header.name.lower() == name.lower())


class Selection:
    """Some of the records of a data set, numbered anew.

    Args:
        records: the data set.
        kept: numbers of its records, ascending.
    """

    def __init__(self, records: ShardDataset, kept: Int64[np.ndarray, " N"]) -> None:
        self.records = records
        self.kept = kept

    @property
    def counts(self) -> Int64[np.ndarray, " S"]:
        """Number of records of every shard."""
        ends = np.searchsorted(self.kept, np.cumsum(self.records.counts))
        return np.diff(ends, prepend=0)

    def __len__(self) -> int:
        return len(self.kept)

    def record(self, index: int, *, media: bool = True) -> Record:
        """Return record ``index``; raises as ``ShardDataset.record``."""
        return self.records.record(int(self.kept[index]), media=media)

    def place(self, index: int) -> tuple[str, str]:
        """Return shard and key of record ``index``, without reading it."""
        return self.records.place(int(self.kept[index]))

    def named(self, name: str) -> Record:
        """Return the record of this ``shard:key``; raises as ``ShardDataset.named``."""
        return self.records.named(name)

    def costs(self, indices: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Numbers by which records sort by their length, as ``ShardDataset.costs``."""
        return self.records.costs(self.kept[indices])
