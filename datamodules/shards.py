# SPDX-License-Identifier: Apache-2.0
"""Reading of WebDataset shards as a map-style data set: any record by its number, in any process.

Members are read at the offsets of the index, never through an unpickling decoder. ``shard_writer`` writes
them.
"""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from braceexpand import braceexpand
from torch.utils.data import Dataset

from ixc_lightning.datamodules.index import BLOCK, Entry, read_entries
from ixc_lightning.datamodules.records import Kind, Place, parse_record
from ixc_lightning.datamodules.shard_writer import MANIFEST, Manifest
from ixc_lightning.types import MODALITIES, InputError, Record

MAX_OPEN_SHARDS = 64
"""Files that one process keeps open; the oldest is closed first."""
TAR_NAME_LENGTH = 100
"""Longer member names, and names beyond ASCII, are not whole in the tar header."""


class ShardDataset(Dataset[Record]):
    """The records of a set of shards, by number: shards in the order given, records in that of their tar.

    Only the index is in memory, as one block of bytes and some arrays, so that worker processes share it or
    copy it cheaply.

    Args:
        shards: a tar, a folder with tars, a glob pattern or a brace pattern (``train-{000000..000015}.tar``),
            or a list of them.
        kind: the kind of record that every shard holds: preference, instruction or prompt.

    Raises:
        InputError: naming the path, if nothing is there, or a shard is no tar, is cut off, or is not that of
            its index.

    Attributes:
        paths: path of every shard.
        kind: as given.
        domains: names of the domains that occur, sorted.
        domain_ids: index into ``domains`` of every record; −1 only for records that raise when they are read.
        modality_ids: index into ``MODALITIES`` of every record.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], *, kind: Kind | str) -> None:
        self.kind = Kind(kind)
        self.paths = expand_shards(shards, kind=self.kind)
        entries = [read_entries(path) for path in self.paths]
        flat = [entry for shard in entries for entry in shard]
        if not flat:
            raise InputError(f"{shards}: the shards hold no samples; check that they were written to the end")
        lines = [entry.to_line() for entry in flat]
        self.domains = sorted({entry.domain for entry in flat} - {""})
        domain_ids = {domain: index for index, domain in enumerate(self.domains)}
        self.domain_ids = np.array([domain_ids.get(entry.domain, -1) for entry in flat], dtype=np.int32)
        self.modality_ids = np.array([MODALITIES.index(entry.modality) for entry in flat], dtype=np.int8)
        self._lines = b"".join(lines)
        self._line_ends = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        self._shard_ends = np.cumsum([len(shard) for shard in entries], dtype=np.int64)
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.domain_ids)

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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def name(self, index: int) -> str:
        """Return ``shard:key`` of record ``index``, without reading it."""
        shard, entry = self._find(index)
        return f"{self.paths[shard]}:{entry.key}"

    def modality(self, index: int) -> str:
        """Return the modality of record ``index``, without reading it."""
        return MODALITIES[self.modality_ids[index]]

    def domain(self, index: int) -> str:
        """Return the domain of record ``index``, without reading it; empty if reading it raises."""
        domain = self.domain_ids[index]
        return self.domains[domain] if domain >= 0 else ""

    def _find(self, index: int) -> tuple[int, Entry]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        start, end = self._line_ends[index : index + 2]
        return int(np.searchsorted(self._shard_ends, index, side="right")), Entry.from_line(
            self._lines[start:end]
        )

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


def _is_header(block: bytes, name: str, size: int) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    whole = len(name) <= TAR_NAME_LENGTH and name.isascii()
    return header.size == size and (not whole or header.name.lower() == name.lower())


def expand_shards(shards: str | Path | Sequence[str | Path], *, kind: Kind) -> list[Path]:
    """Return the paths that a tar, a folder, a glob or brace pattern, or a list of them, stands for.

    Args:
        shards: what the user wrote; a leading ``~`` is the home directory.
        kind: a folder whose manifest says another kind is refused.

    Raises:
        InputError: naming the path, if it matches nothing or names a shard twice, or a folder is incomplete.
    """
    single = isinstance(shards, (str, Path))
    paths = [path for spec in ([shards] if single else shards) for path in _expand(str(spec), kind)]
    if not paths:
        raise InputError("no shards: the list is empty; name a folder, a tar or a pattern")
    if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise InputError(f"{twice[0]}: is named twice; name every shard once (weights belong in the mixture)")
    return paths


def _expand(spec: str, kind: Kind) -> list[Path]:
    spec = os.path.expanduser(spec)
    if Path(spec).is_dir():
        return _folder(Path(spec), kind)
    try:
        names = [spec] if Path(spec).exists() else list(braceexpand(spec))
    except ValueError as error:
        raise InputError(
            f"{spec}: is no brace pattern ({error}); write it like train-{{000000..000015}}.tar"
        ) from None
    paths = []
    for name in names:
        found = [name] if Path(name).exists() else sorted(glob(name))
        if not found:
            problem = "no such shard" if name == spec else f"no such shard (from {spec})"
            raise InputError(f"{name}: {problem}; name a folder, a tar or a pattern that matches one")
        paths += [Path(path) for path in found]
    return paths


def _folder(folder: Path, kind: Kind) -> list[Path]:
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise InputError(f"{folder}: the folder holds no .tar; name the folder whose shards you want")
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        if manifest.kind != kind:
            raise InputError(
                f"{folder}: holds {manifest.kind} records, but is read as {kind} data; name the other folder"
            )
        if missing := sorted({shard["file"] for shard in manifest.shards} - {path.name for path in paths}):
            raise InputError(
                f"{folder / missing[0]}: is in the manifest, but not in the folder; copy the folder again"
            )
    return paths
