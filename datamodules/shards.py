# SPDX-License-Identifier: Apache-2.0
"""Reading of WebDataset shards as a map-style data set: any record by its number, in any process.

Members are read at the offsets of the index, never through an unpickling decoder. ``shard_writer`` writes
them. Of a folder with a manifest nothing else is looked at when it is opened, and what the manifest says is
mapped, so a million shards open as quickly as ten; the index of a shard is read when one of its records is.
Shards at an address come through a cache on the disk.
"""

from __future__ import annotations

import builtins
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.index import BLOCK, Entry, OnDamage
from ixc_lightning.datamodules.opening import open_shards
from ixc_lightning.datamodules.records import Kind, Place, parse_record
from ixc_lightning.datamodules.remote import StoreInputError, is_remote, shown
from ixc_lightning.datamodules.shard_files import ShardFiles
from ixc_lightning.types import MODALITIES, InputError, Record

MAX_INDICES = 64
"""Indices that one process keeps in memory; the oldest goes first."""
TAR_NAME_LENGTH = 100
"""Longer member names, and names beyond ASCII, are not whole in the tar header."""


class OpenShard(NamedTuple):
    """A shard whose records are read.

    Attributes:
        place: its path or URL.
        name: the same for people.
        sha256: its checksum in hexadecimal; empty if it is not known.
        entries: its index.
    """

    place: Path | str
    name: str
    sha256: str
    entries: list[Entry]


class ShardDataset(Dataset[Record]):
    """The records of a set of shards, by number: shards in the order given, records in that of their tar.

    Args:
        shards: a tar, a folder with tars or one that a converter wrote, a glob pattern or a brace pattern
            (``train-{000000..000015}.tar``), or a list of them; each a path, or a URL that ``fsspec`` knows.
        kind: the kind of record that every shard holds: preference, instruction or prompt. Null takes folders
            of any; set ``kind`` before a record is read.
        on_damage: called with what cannot be read of a damaged shard, whose other records are used; without
            it, damage raises.
        cache: keeps what lies at an address; if null, that below the home directory.

    Raises:
        InputError: naming the path or URL, if nothing is there, or a shard without a manifest is no tar, is
            cut off, or is not that of its index. Of one that a manifest lists, that is found when a record of
            it is read.

    Attributes:
        shards: path or URL of every shard.
        groups: number of shards of each thing that was named.
        kind: as given.
        domains: names of the domains that occur, sorted.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        kind: Kind | str | None,
        on_damage: OnDamage | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        found = open_shards(
            shards, kind=None if kind is None else Kind(kind), cache=cache, on_damage=on_damage
        )
        self.shards, self.groups = found.shards, found.groups
        self._local, self._remote = found.local, found.remote
        if not len(self):
            raise InputError(
                f"{_shown(shards)}: the shards hold no samples; check that they were written to the end"
            )
        self.kind = Kind(kind or Kind.PREFERENCE)
        self.domains = sorted(set().union(*(run.domains for run in self.shards.runs)))
        self._keeps_going = on_damage is not None
        self._scanned = found.scanned
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()

    @property
    def counts(self) -> Int64[np.ndarray, " S"]:
        """Number of records of every shard."""
        return self.shards.counts

    @property
    def bytes(self) -> Int64[np.ndarray, " S"]:
        """Size of every shard."""
        return self.shards.bytes

    def __len__(self) -> int:
        return self.shards.samples

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
        if "json" not in entry.members:
            raise Place(shard.name, entry.key).error("json", f"is missing; add a member {entry.key}.json")
        files = {
            field: self._read(shard, entry, field) if media else b""
            for field in entry.members
            if field != "json"
        }
        data = self._read(shard, entry, "json")
        record = parse_record(data, files, kind=self.kind, shard=shard.name, key=entry.key)
        return record if media else replace(record, media={})

    def place(self, index: int) -> tuple[str, str]:
        """Return shard and key of record ``index``, without reading it.

        Where the index of the shard is damaged, nobody knows the key, and it is empty.
        """
        shard, _ = self._locate(index)
        try:
            return shown(self.shards[shard]), self._find(index)[1].key
        except StoreInputError:  # it says nothing about the shard
            raise
        except InputError:
            return shown(self.shards[shard]), ""

    def name(self, index: int) -> str:
        """Return ``shard:key`` of record ``index``, without reading it."""
        return ":".join(self.place(index))

    def named(self, name: str) -> Record:
        """Return the record of this ``shard:key``.

        Raises:
            KeyError: if there is none.
        """
        path, _, key = name.rpartition(":")
        shard = self.shards.find(path)
        keys = [] if shard is None else [entry.key for entry in self._open(shard).entries]
        if shard is None or key not in keys:
            raise KeyError(name)
        return self.record(self.shards.first(shard) + keys.index(key))

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

    def prefetch(self, indices: Int64[np.ndarray, " N"]) -> None:
        """Begin to fetch the shards of these records, in this order, in the background, into half the cache.

        What lies on a disk is left alone.
        """
        if self._remote is None:
            return
        numbers = dict.fromkeys(self._locate(index)[0] for index in indices.tolist())
        remote = [number for number in numbers if is_remote(self.shards[number])]
        fits = np.cumsum([self.shards.row(number).bytes for number in remote])
        room = self._remote.cache.max_bytes // 2
        self._remote.prefetch(
            [str(self.shards[number]) for number, end in zip(remote, fits, strict=True) if end <= room]
        )

    @property
    def is_remote(self) -> bool:
        """Whether any of the shards lies at an address."""
        return self._remote is not None

    @property
    def remote_bytes(self) -> Int64[np.ndarray, " S"]:
        """Size of every shard that lies at an address, and 0 for those on a disk."""
        return self.shards.remote_bytes

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        self._local.close()
        if self._remote is not None:
            self._remote.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the shard that holds record ``index``, and the record's number in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.shards.locate(index % len(self))

    def _find(self, index: int) -> tuple[OpenShard, Entry]:
        number, within = self._locate(index)
        shard = self._open(number)
        if within >= len(shard.entries):
            problem = f"lacks record {within + 1:,} of {self.shards.row(number).samples:,}"
            raise InputError(f"{shard.name}: {problem}: it is cut off, or damaged before it; copy it again")
        return shard, shard.entries[within]

    def _open(self, number: int) -> OpenShard:
        """Return what reading a shard takes, kept for its next record."""
        if number not in self._opened:
            place, row = self.shards[number], self.shards.row(number)
            entries = self._scanned.get(str(place))
            if entries is None:
                entries = self._files(place).entries(place, row.sha256, keeps_going=self._keeps_going)
            # Of a damaged shard, those that are there are read.
            if len(entries) > row.samples or (len(entries) < row.samples and not self._keeps_going):
                problem = f"holds {len(entries):,} records, but {row.samples:,} were counted"
                raise InputError(f"{shown(place)}: {problem}; run `index` on its folder, and start again")
            if len(self._opened) >= MAX_INDICES:
                self._opened.popitem(last=False)
            self._opened[number] = OpenShard(place, shown(place), row.sha256, entries)
        self._opened.move_to_end(number)
        return self._opened[number]

    def _files(self, place: Path | str) -> ShardFiles[Any]:
        """What reads a shard."""
        return self._remote if self._remote and is_remote(place) else self._local

    def _read(self, shard: OpenShard, entry: Entry, field: str) -> builtins.bytes:
        """Return the bytes of a member; the header before it must be its own, else the shard has changed."""
        offset, size = entry.members[field]
        descriptor = self._files(shard.place).descriptor(shard.place, shard.sha256)
        block = os.pread(descriptor, BLOCK + size, offset - BLOCK)
        if len(block) < BLOCK + size or not _is_header(block[:BLOCK], f"{entry.key}.{field}", size):
            problem = f"member {entry.key}.{field} is not where the index says; the shard has changed"
            raise InputError(f"{shard.name}: {problem}. Delete its .index.jsonl, or copy both again")
        return block[BLOCK:]


def _shown(shards: str | Path | Sequence[str | Path]) -> str:
    return shown(shards) if isinstance(shards, (str, Path)) else ", ".join(map(shown, shards))


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
        ends = np.searchsorted(self.kept, self.records.shards.ends)
        return np.diff(ends, prepend=0)

    def __len__(self) -> int:
        return len(self.kept)

    def record(self, index: int, *, media: bool = True) -> Record:
        """Return record ``index``; raises as ``ShardDataset.record``."""
        return self.records.record(int(self.kept[index]), media=media)

    @property
    def is_remote(self) -> bool:
        """Whether any of the shards lies at an address."""
        return self.records.is_remote

    def prefetch(self, indices: Int64[np.ndarray, " N"]) -> None:
        """Begin to fetch the shards of these records, as ``ShardDataset.prefetch``."""
        self.records.prefetch(self.kept[indices])

    def place(self, index: int) -> tuple[str, str]:
        """Return shard and key of record ``index``, without reading it."""
        return self.records.place(int(self.kept[index]))

    def named(self, name: str) -> Record:
        """Return the record of this ``shard:key``; raises as ``ShardDataset.named``."""
        return self.records.named(name)

    def costs(self, indices: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Numbers by which records sort by their length, as ``ShardDataset.costs``."""
        return self.records.costs(self.kept[indices])
