# SPDX-License-Identifier: Apache-2.0
"""Sidecars and a manifest for tars that came from elsewhere, and the check of tars by their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from ixc_lightning.datamodules.index import Header, index_path, read_entries, read_header, write_index
from ixc_lightning.datamodules.manifest import MANIFEST, VERSION, Manifest
from ixc_lightning.datamodules.patterns import expand_shards
from ixc_lightning.datamodules.record_checks import MAX_JSON_BYTES
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import is_remote, shown
from ixc_lightning.datamodules.shard_table import ShardRow, ShardTable
from ixc_lightning.types import InputError


class Indexed(NamedTuple):
    """A shard with its sidecar.

    Attributes:
        path: of the tar.
        header: what it holds.
        action: whether the sidecar was written, written anew because it was that of another tar or version,
            or was there.
    """

    path: Path
    header: Header
    action: Literal["written", "renewed", "there"]


class Checked(NamedTuple):
    """A shard whose bytes were read through.

    Attributes:
        path: of the tar.
        problem: what is wrong, in a few words; empty if nothing is.
    """

    path: Path
    problem: str


def paths_of(shards: str | Path) -> list[Path]:
    """Return the paths that a tar, a folder or a pattern stands for, whatever kind of record they hold.

    Of a folder these are all its tars, also those that its manifest does not list.

    Raises:
        InputError: an address, because nothing is written there; a shard that a manifest lists is missing; or
            as ``expand_shards``.
    """
    if is_remote(shards):
        raise InputError(
            f"{shown(shards)}: only tars on a disk can be indexed or checked; run index on a local copy, and "
            "upload what it writes beside the tars"
        )
    folder = Path(shards).expanduser()
    if folder.is_dir() and (paths := sorted(folder.glob("*.tar"))):
        manifest = _sound_manifest(folder)
        listed = {row.file for row in manifest.shards} if manifest else set()
        if missing := min(listed - {path.name for path in paths}, default=""):
            raise InputError(
                f"{folder / missing}: is in the manifest, but not in the folder; copy the folder again, or "
                f"delete {MANIFEST} if the shard is meant to be gone"
            )
        return paths
    (found,) = expand_shards(shards)
    return [Path(path) for path in found]


def index_shards(paths: Iterable[Path]) -> Iterator[Indexed]:
    """Write the sidecars that are missing or not of their tar, and give each shard when it has one.

    Raises:
        InputError: naming the shard, if it is no sound tar, or the folder cannot be written to.
    """
    for path in paths:
        had_one = index_path(path).exists()
        if had_one and (header := _sound_header(path)):
            yield Indexed(path, header, "there")
            continue
        try:
            header = write_index(path)
        except OSError as error:
            raise InputError(
                f"{index_path(path)}: cannot be written ({error.strerror}); make the folder writable, "
                "or index a copy"
            ) from None
        yield Indexed(path, header, "renewed" if had_one else "written")


def renew_manifest(folder: Path, shards: Iterable[Indexed]) -> Manifest | None:
    """Write the manifest of a folder that has none, or one of other shards or of an earlier version.

    Args:
        folder: where the shards lie.
        shards: all of them.

    Returns:
        The manifest, or None if a sound one was there.

    Raises:
        InputError: the shards hold records of several kinds, or none that can be read.
    """
    shards = list(shards)
    headers = {shard.path.name: shard.header for shard in shards}
    there = _sound_manifest(folder)
    if there and there == Manifest.of(Kind(there.kind), headers):
        if there.version == VERSION:
            return None
        manifest = there
    else:
        manifest = Manifest.of(_common_kind(folder, shards), headers)
    manifest.save(folder)
    return Manifest.load(folder)


def _common_kind(folder: Path, shards: Iterable[Indexed]) -> Kind:
    kinds = {kind: shard.path for shard in shards if (kind := _kind(shard.path))}
    if len(kinds) != 1:
        found = ", ".join(f"{kind} ({path.name})" for kind, path in kinds.items()) or "none"
        raise InputError(
            f"{folder}: a folder holds records of one kind, but these were found: {found}; "
            "give each kind a folder of its own"
        )
    return next(iter(kinds))


def _sound_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if there is none, or one that is damaged."""
    try:
        manifest = Manifest.load(folder)
        manifest.check_table(folder)
    except InputError:
        return None
    return manifest if manifest.kind in set(Kind) else None


def check_shards(paths: Iterable[Path]) -> Iterator[Checked]:
    """Read every shard through, and compare its SHA-256 with those of manifest and sidecar.

    Raises:
        InputError: a manifest, its table or a shard that cannot be read or is damaged.
    """
    paths = list(paths)
    tables: dict[Path, ShardTable] = {}
    for folder in sorted({path.parent for path in paths}):
        if (folder / MANIFEST).exists():
            manifest = Manifest.load(folder)
            manifest.check_table(folder)
            tables[folder] = manifest.shards
    for path in paths:
        table = tables.get(path.parent)
        number = None if table is None else table.find(path.name)
        row = None if table is None or number is None else table[number]
        is_stray = table is not None and row is None
        problem = f"is not in {MANIFEST}; run index without --check" if is_stray else _problem(path, row)
        yield Checked(path, problem)


def _problem(path: Path, listed: ShardRow | None) -> str:
    known = {} if listed is None else {MANIFEST: listed.sha256}
    if index_path(path).exists():
        header = _sound_header(path)
        if header is None:
            return f"{index_path(path).name} was made from another tar or by another version"
        known[index_path(path).name] = header.sha256
    if not any(known.values()):
        return "no checksum is known; run index without --check first"
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); was it moved?") from None
    wrong = [name for name, sha256 in known.items() if sha256 and sha256 != found]
    return f"is not the tar of {' and '.join(wrong)}" if wrong else ""


def _sound_header(path: Path) -> Header | None:
    """The header of a sidecar that is there, or None if it is not of this tar and version, or has no sum."""
    try:
        header = read_header(path)
        read_entries(path)
    except InputError:
        return None
    return header if header.sha256 else None


def _kind(path: Path) -> Kind | None:
    """The kind of the first record of a shard, by what it has; None if it cannot be read."""
    for entry in read_entries(path):
        offset, size = entry.members.get("json", (0, 0))
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(min(size, MAX_JSON_BYTES))
        try:
            raw = json.loads(data)
            if raw.get("chosen") is not None:
                return Kind.PREFERENCE
            return Kind.INSTRUCTION if raw["messages"][-1]["role"] == "assistant" else Kind.PROMPT
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            continue
    return None
