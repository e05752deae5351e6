# SPDX-License-Identifier: Apache-2.0
"""Where every member of a shard lies: the scan of a tar, and the sidecar file that saves it.

A sidecar ``shard-000000.index.jsonl`` lies beside ``shard-000000.tar``. Its first line is the ``Header``, and
each further line is one sample: ``[key, modality, domain, {field: [offset, size]}]``. Without a sidecar the
tar is scanned.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ixc_lightning.datamodules.quarantine import BadSample
from ixc_lightning.datamodules.record_checks import MAX_JSON_BYTES, shortened
from ixc_lightning.datamodules.tar_members import BLOCK, DamageError, describe_problem, walk
from ixc_lightning.types import MODALITIES, InputError

MAX_HEADER_BYTES = 1 << 20
VERSION = 2
OnDamage = Callable[[BadSample], object]


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


class Header(NamedTuple):
    """What a shard holds, without its samples.

    Attributes:
        bytes: size of the tar.
        samples: number of samples.
        modalities: number of samples of each modality that occurs, sorted by name.
        domains: number of samples of each domain, sorted by name; broken records have none.
        sha256: checksum of the tar in hexadecimal; empty if the shard was scanned and not indexed.
    """

    bytes: int
    samples: int
    modalities: dict[str, int]
    domains: dict[str, int]
    sha256: str = ""

    @classmethod
    def of(cls, entries: Iterable[Entry], *, size: int, sha256: str = "") -> Header:
        """Return the header of the entries of a tar of ``size`` bytes."""
        entries = list(entries)
        domains = Counter(entry.domain for entry in entries if entry.domain)
        modalities = Counter(entry.modality for entry in entries)
        return cls(
            size, len(entries), dict(sorted(modalities.items())), dict(sorted(domains.items())), sha256
        )

    @classmethod
    def from_line(cls, line: builtins.bytes) -> Header:
        """Return the header that ``to_line`` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: if the line is none of this version.
        """
        raw = json.loads(line)
        version = raw.pop("version", None) if isinstance(raw, dict) else None
        if version != VERSION:
            raise ValueError(f"version {version}, not {VERSION}")
        counts = [*raw["modalities"].values(), *raw["domains"].values(), raw["bytes"], raw["samples"]]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("a count is no number")
        if sum(raw["modalities"].values()) != raw["samples"] or not isinstance(raw["sha256"], str):
            raise ValueError("the counts do not add up")
        return cls(**raw)

    def to_line(self) -> builtins.bytes:
        """Return the header as the first line of a sidecar file."""
        return json.dumps({"version": VERSION, **self._asdict()}).encode() + b"\n"


def index_path(shard: Path) -> Path:
    """Return the path of the sidecar of a shard."""
    return shard.with_suffix(".index.jsonl")


def write_index(shard: Path) -> Header:
    """Scan a shard, write its sidecar, and return the header.

    Raises:
        InputError: as ``scan_shard``.
    """
    entries = scan_shard(shard)
    with shard.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    header = Header.of(entries, size=shard.stat().st_size, sha256=digest)
    temporary = index_path(shard).with_suffix(f".{os.getpid()}.partial")
    temporary.write_bytes(header.to_line() + b"".join(entry.to_line() for entry in entries))
    temporary.replace(index_path(shard))
    return header


def read_header(shard: Path, *, on_damage: OnDamage | None = None) -> Header:
    """Return what a shard holds, from the first line of its sidecar if there is one, else by a scan.

    Args:
        shard: path of the tar.
        on_damage: as for ``read_entries``.

    Raises:
        InputError: as ``read_entries``.
    """
    sidecar = index_path(shard)
    if sidecar.exists():
        with sidecar.open("rb") as stream:
            header = _header(shard, stream.readline(MAX_HEADER_BYTES))
        if _is_fresh(shard, header, refuse=on_damage is None):
            return header
    return Header.of(scan_shard(shard, on_damage=on_damage), size=_size(shard))


def read_entries(shard: Path, *, on_damage: OnDamage | None = None) -> list[Entry]:
    """Return the entries of a shard, from its sidecar if there is one, else by a scan.

    Args:
        shard: path of the tar.
        on_damage: as for ``scan_shard``; where it is given, a shard that is not that of its sidecar (it was
            cut off in copying, say) is scanned, else it is an error.

    Raises:
        InputError: if the sidecar was not made from this tar, or as ``scan_shard``.
    """
    if index_path(shard).exists():
        header, lines = _sidecar(shard)
        if _is_fresh(shard, header, refuse=on_damage is None):
            return _entries(shard, header, lines)
    return scan_shard(shard, on_damage=on_damage)


def read_sidecar(shard: Path) -> tuple[Header, list[Entry]]:
    """Return what the sidecar of a shard says; the shard itself need not be there.

    Raises:
        InputError: naming the sidecar, if it is no index of this version.
    """
    header, lines = _sidecar(shard)
    return header, _entries(shard, header, lines)


def _sidecar(shard: Path) -> tuple[Header, list[bytes]]:
    first, *lines = index_path(shard).read_bytes().splitlines() or [b""]
    return _header(shard, first), lines


def _header(shard: Path, line: bytes) -> Header:
    try:
        return Header.from_line(line)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _no_index(shard, error) from None


def _entries(shard: Path, header: Header, lines: list[bytes]) -> list[Entry]:
    try:
        entries = [Entry.from_line(line) for line in lines]
        bad = next((entry for entry in entries if not _is_inside(entry, header.bytes)), None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _no_index(shard, error) from None
    if bad or len(entries) != header.samples:
        found = f"{bad} is no sample of it" if bad else f"{len(entries)} of {header.samples} samples"
        raise _no_index(shard, found)
    return entries


def _is_inside(entry: Entry, size: int) -> bool:
    """Return whether an entry can be one of a tar of ``size`` bytes; a reader would ask for any memory."""
    places = entry.members.values()
    return (
        all(isinstance(name, str) for name in (entry.key, entry.domain, *entry.members))
        and entry.modality in MODALITIES
        and all(type(at) is type(length) is int for at, length in places)
        and all(BLOCK <= at <= at + length <= size for at, length in places)
    )


def _no_index(shard: Path, problem: object) -> InputError:
    advice = "delete it, and the shard is scanned instead"
    reason = shortened(str(problem))
    return InputError(f"{index_path(shard)}: is not an index of version {VERSION} ({reason}); {advice}")


def _is_fresh(shard: Path, header: Header, *, refuse: bool) -> bool:
    if header.bytes == _size(shard):
        return True
    if refuse:
        raise InputError(
            f"{index_path(shard)}: was made from another version of {shard.name}; "
            "delete it, and the shard is scanned instead, or copy both again"
        )
    return False


def _size(shard: Path) -> int:
    try:
        return shard.stat().st_size
    except OSError as error:
        raise _unreadable(shard, error) from None


def _unreadable(shard: Path, error: OSError) -> InputError:
    return InputError(f"{shard}: cannot be read ({error.strerror}); was it moved?")


def scan_shard(shard: Path, *, on_damage: OnDamage | None = None) -> list[Entry]:
    """Return the entries of a shard by reading through its headers and its JSON.

    Members group as WebDataset groups them: the key is the path up to the first dot of the file name, the
    field is the rest in lower case, and names without a dot or below ``__meta__`` are no members.

    Args:
        shard: path of the tar.
        on_damage: called for every sample that gets no entry: with the key of one whose members are doubtful,
            and with an empty key, once, for all that lies beyond the place where the tar is damaged. What
            comes before that place is returned; a sample that lacks members there raises when it is read.
            Without it the first damage raises.

    Raises:
        InputError: naming the shard, if it cannot be read; and without ``on_damage``, if it is no
            uncompressed tar, is cut off, or has a member twice, as a link, or under a name that leads out.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    damaged: set[str] = set()

    def report(key: str, problem: str) -> None:
        reason = f"{shard}: {problem}"
        if on_damage is None:
            raise InputError(reason)
        if key not in damaged:
            damaged.add(key)
            on_damage(BadSample(key, str(shard), reason))

    try:
        with shard.open("rb") as stream:
            try:
                for member, key, field in walk(stream):
                    members = samples.setdefault(key, {})
                    if problem := describe_problem(member, field, members):
                        report(key, problem)
                    members[field] = (member.offset_data, member.size)
            except DamageError as damage:
                report("", str(damage))
            return [_entry(stream, key, samples[key]) for key in samples if key not in damaged]
    except OSError as error:
        raise _unreadable(shard, error) from None


def _entry(stream: Any, key: str, members: dict[str, tuple[int, int]]) -> Entry:
    """Return the entry of a sample; a JSON that cannot be read gets its error when it is used."""
    offset, size = members.get("json", (0, 0))
    try:
        raw = json.loads(os.pread(stream.fileno(), min(size, MAX_JSON_BYTES), offset))
        parts = [part for message in raw["messages"] for part in message["content"] if isinstance(part, dict)]
        kinds = [part["type"] for part in parts]
        modality = "video" if "video" in kinds else MODALITIES[min(kinds.count("image"), 2)]
        return Entry(key, modality, raw["domain"] if isinstance(raw["domain"], str) else "", members)
    except (ValueError, TypeError, KeyError, RecursionError):
        return Entry(key, MODALITIES[0], "", members)
