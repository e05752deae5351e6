# SPDX-License-Identifier: Apache-2.0
"""Where every member of a shard lies: the scan of a tar, and the sidecar file that saves it.

A sidecar ``shard-000000.index.jsonl`` lies beside ``shard-000000.tar``. Its first line has the size of the
tar; each further line is one sample: ``[key, modality, domain, {field: [offset, size]}]``. Without a sidecar
the tar is scanned once.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ixc_lightning.types import MODALITIES, InputError

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
VERSION = 1
META = re.compile(r"__[^/]*__($|/)")
"""What WebDataset readers skip."""


class Entry(NamedTuple):
    """One sample of a shard.

    Attributes:
        key: WebDataset key.
        modality: entry of ``MODALITIES``.
        domain: the record's domain; empty only where the JSON is so broken that reading the record raises.
        members: offset and size in bytes of every member, by field (the member name without the key).
    """

    key: str
    modality: str
    domain: str
    members: dict[str, tuple[int, int]]

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        """Return the entry that ``to_line`` wrote."""
        key, modality, domain, members = json.loads(line)
        return cls(
            key, modality, domain, {field: (offset, size) for field, (offset, size) in members.items()}
        )

    def to_line(self) -> bytes:
        """Return the entry as one line of a sidecar file."""
        return json.dumps(list(self)).encode() + b"\n"


def index_path(shard: Path) -> Path:
    """Return the path of the sidecar of a shard."""
    return shard.with_suffix(".index.jsonl")


def write_index(shard: Path) -> list[Entry]:
    """Scan a shard, write its sidecar, and return its entries in the order of the tar.

    Raises:
        InputError: as ``scan_shard``.
    """
    entries = scan_shard(shard)
    header = json.dumps({"version": VERSION, "bytes": shard.stat().st_size}).encode() + b"\n"
    temporary = index_path(shard).with_suffix(f".{os.getpid()}.partial")
    temporary.write_bytes(header + b"".join(entry.to_line() for entry in entries))
    temporary.replace(index_path(shard))
    return entries


def read_entries(shard: Path) -> list[Entry]:
    """Return the entries of a shard, from its sidecar if there is one, else by a scan.

    Raises:
        InputError: if the sidecar was not made from this tar, or as ``scan_shard``.
    """
    sidecar = index_path(shard)
    if not sidecar.exists():
        return scan_shard(shard)
    try:
        header, *lines = sidecar.read_bytes().splitlines()
        fresh = json.loads(header) == {"version": VERSION, "bytes": shard.stat().st_size}
        entries = [Entry.from_line(line) for line in lines]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{sidecar}: is not an index ({error}); delete it, and the shard is scanned instead"
        ) from None
    if not fresh:
        raise InputError(
            f"{sidecar}: was made from another version of {shard.name}; "
            "delete it, and the shard is scanned instead"
        )
    return entries


def scan_shard(shard: Path) -> list[Entry]:
    """Return the entries of a shard by reading through its headers and its JSON.

    Members group as WebDataset groups them: the key is the path up to the first dot of the file name, the
    field is the rest in lower case, and names without a dot or below ``__meta__`` are no members.

    Raises:
        InputError: naming the shard, if it is no uncompressed tar, is cut off, or has a member twice.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for key, field, place in _members(tar):
                members = samples.setdefault(key, {})
                if field in members:
                    raise InputError(
                        f"{shard}: member {key}.{field} comes twice; give every sample a key of its own"
                    )
                members[field] = place
            _check_end(shard, tar)
    except tarfile.TarError as error:
        problem = f"is not an uncompressed tar, or is cut off ({error})"
        raise InputError(
            f"{shard}: {problem}; unpack a .tar.gz with gunzip, or copy the shard again"
        ) from None
    with shard.open("rb") as stream:
        return [_entry(stream, key, members) for key, members in samples.items()]


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tuple[int, int]]]:
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, dot, field = name.partition(".")
        is_file = member.isreg() and not member.issparse()
        if is_file and stem and dot and not META.match(member.name):
            key = f"{folder}/{stem}" if folder else stem
            yield key, field.lower(), (member.offset_data, member.size)


def _check_end(shard: Path, tar: tarfile.TarFile) -> None:
    """Refuse what ``tarfile`` takes for the end: a cut between members, a damaged header, a second tar."""
    with shard.open("rb") as stream:
        stream.seek(tar.offset)
        end = stream.read(BLOCK)
        chunks = iter(lambda: stream.read(CHUNK), b"")
        if len(end) < BLOCK:
            raise InputError(f"{shard}: is cut off, the end mark is missing; copy the shard again")
        if end.strip(b"\0") or any(chunk.strip(b"\0") for chunk in chunks):
            problem = f"is damaged at byte {tar.offset}, or is two tars joined with cat"
            raise InputError(f"{shard}: {problem}; copy the shard again, or join with tar --concatenate")


def _entry(stream: Any, key: str, members: dict[str, tuple[int, int]]) -> Entry:
    """Return the entry of a sample; a JSON that cannot be read gets its error when it is used."""
    offset, size = members.get("json", (0, 0))
    try:
        raw = json.loads(os.pread(stream.fileno(), size, offset))
        parts = [part for message in raw["messages"] for part in message["content"] if isinstance(part, dict)]
        kinds = [part["type"] for part in parts]
        modality = "video" if "video" in kinds else MODALITIES[min(kinds.count("image"), 2)]
        return Entry(key, modality, raw["domain"] if isinstance(raw["domain"], str) else "", members)
    except (ValueError, TypeError, KeyError, RecursionError):
        return Entry(key, MODALITIES[0], "", members)
