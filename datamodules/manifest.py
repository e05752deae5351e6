# SPDX-License-Identifier: Apache-2.0
"""What a folder of shards holds: a summary for people and programs, and a table of the shards.

FOLDER/manifest.json                kind and counts, and the name of the table with its size and checksum
FOLDER/manifest-<SHA>.safetensors   the table, see ``shard_table``, named by the beginning of its SHA-256

Version 1 had the shards in the JSON, one object each. It is still read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from ixc_lightning.datamodules.index import Header
from ixc_lightning.datamodules.record_checks import shortened
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_table import ShardRow, ShardTable
from ixc_lightning.types import InputError

MANIFEST = "manifest.json"
VERSION = 2
TABLE = "manifest-{}.safetensors"
TABLE_NAME = re.compile(r"manifest-[0-9a-f]{16}\.safetensors")
FIELDS = ("kind", "samples", "modalities", "domains")
ROW_TYPES = {"file": str, "samples": int, "bytes": int, "sha256": str}
"""What version 1 says of a shard."""


@dataclass(frozen=True)
class TableFile:
    """Where the table of a manifest is.

    Attributes:
        file: its name, in the folder of the manifest.
        bytes: its size.
        sha256: its checksum in hexadecimal.
    """

    file: str
    bytes: int
    sha256: str

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> TableFile:
        """Return what a manifest says of its table; raises ``ValueError`` if it cannot be."""
        file, size, sha256 = raw["file"], raw["bytes"], raw["sha256"]
        if len(raw) != 3 or type(size) is not int:
            raise ValueError("the table of the shards has no size")
        if not TABLE_NAME.fullmatch(file) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("the table of the shards has no name or no checksum")
        if file != TABLE.format(sha256[:16]):
            raise ValueError("the table of the shards has the name of another one")
        return cls(file, size, sha256)


OpenTable: TypeAlias = Callable[[TableFile], ShardTable]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        kind: kind of record.
        samples: number of samples.
        modalities: number of samples of each modality.
        domains: number of samples of each domain.
        shards: name, samples, bytes and checksum of each shard, sorted by name.
        version: of the format that it was read from; it does not count when manifests are compared.
        table: the file of ``shards``, if it was read from one; nor does this.
    """

    kind: str
    samples: int
    modalities: dict[str, int]
    domains: dict[str, int]
    shards: ShardTable
    version: int = field(default=VERSION, compare=False)
    table: TableFile | None = field(default=None, compare=False)

    @classmethod
    def of(cls, kind: Kind, shards: Mapping[str, Header]) -> Manifest:
        """Return the manifest of shards of one kind, by their file names."""
        rows = [
            ShardRow(name, header.samples, header.bytes, header.sha256) for name, header in shards.items()
        ]
        return cls(
            kind=kind.value,
            samples=sum(header.samples for header in shards.values()),
            modalities=_total(header.modalities for header in shards.values()),
            domains=_total(header.domains for header in shards.values()),
            shards=ShardTable.of(sorted(rows)),
        )

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder.

        Raises:
            InputError: naming the file, if it or its table is missing, damaged, or of a later version.
        """
        path = folder / MANIFEST
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; was the folder written to the end?") from None
        return cls.parse(data, name=str(path), open_table=lambda table: open_table(folder, table))

    @classmethod
    def parse(cls, data: bytes, *, name: str, open_table: OpenTable) -> Manifest:
        """Return the manifest that ``save`` wrote, in this version or the one before.

        Args:
            data: what the file holds.
            name: of the file, for messages.
            open_table: opens the table that the file names.

        Raises:
            InputError: naming the file, if it is no manifest; or as ``open_table``.
        """
        try:
            raw = json.loads(data)
            version = raw.get("version", 1)
            fields = {name: raw.get(name) for name in FIELDS}
            if version in (1, VERSION):
                _check(fields)
                if unknown := sorted(set(raw) - {*FIELDS, "shards", "version", *["table"][: version - 1]}):
                    raise ValueError(f"unexpected field {unknown[0]!r}")
            rows = _rows(raw["shards"]) if version == 1 else None
            table = TableFile.parse(raw["table"]) if version == VERSION else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _no_manifest(name, error) from None
        if table is not None:
            rows = open_table(table)
        if rows is None:
            problem = f"has version {shortened(str(version))}, not {VERSION}"
            raise InputError(f"{name}: {problem}; install a later ixc_lightning, or write the shards again")
        if rows.total != fields["samples"] or (raw["shards"] != len(rows) and version == VERSION):
            raise _no_manifest(name, "its counts are not those of its shards")
        return cls(**fields, shards=rows, version=version, table=table)

    def save(self, folder: Path) -> None:
        """Write the manifest of a folder: a reader sees the one before or this one, each with its table."""
        partial = folder / f".{MANIFEST}.{os.getpid()}.partial"
        try:
            self.shards.save(partial)
            with partial.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            table = TableFile(TABLE.format(digest[:16]), partial.stat().st_size, digest)
            partial.replace(folder / table.file)
            summary = {
                "kind": self.kind,
                "samples": self.samples,
                "modalities": self.modalities,
                "domains": self.domains,
                "shards": len(self.shards),
                "table": vars(table),
                "version": VERSION,
            }
            text = json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(folder / MANIFEST)
        finally:
            partial.unlink(missing_ok=True)
        for path in folder.glob(TABLE.format("*")):
            if TABLE_NAME.fullmatch(path.name) and path.name != table.file:
                path.unlink()

    def check_table(self, folder: Path) -> None:
        """Raise ``InputError`` if the table in the folder has another checksum than the manifest says."""
        if self.table is None:
            return
        path = folder / self.table.file
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != self.table.sha256:
            raise InputError(
                f"{path}: is damaged, its SHA-256 is {found}; copy it again, or run `index` on its folder"
            )


def open_table(folder: Path, table: TableFile) -> ShardTable:
    """Return the table of a manifest in a folder on a disk.

    Raises:
        InputError: naming the file, if it is missing, damaged, or of another size.
    """
    path = folder / table.file
    shards = ShardTable.open(path, name=str(path))
    if path.stat().st_size != table.bytes:
        raise InputError(f"{path}: has not the size that {MANIFEST} says; copy both again")
    return shards


def _check(fields: Mapping[str, Any]) -> None:
    counts = [fields["samples"], *dict(fields["modalities"]).values(), *dict(fields["domains"]).values()]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise TypeError("a count is no number")
    if not all(isinstance(name, str) for name in (fields["kind"], *fields["modalities"], *fields["domains"])):
        raise TypeError("a name is no text")


def _rows(shards: Iterable[Mapping[str, Any]]) -> ShardTable:
    """Return the table of the shards as version 1 lists them."""
    rows = [ShardRow(**{name: shard[name] for name in ROW_TYPES}) for shard in shards]
    if not all(type(row[place]) is kind for row in rows for place, kind in enumerate(ROW_TYPES.values())):
        raise TypeError("a field of a shard has another type")
    rows.sort()
    if any(row.file == other.file for row, other in pairwise(rows)):
        raise ValueError("a shard is listed twice")
    return ShardTable.of(rows)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _no_manifest(name: str, problem: object) -> InputError:
    return InputError(
        f"{name}: is not a manifest ({shortened(str(problem))}); delete it and run `index` on its folder, or "
        "write the shards again"
    )
