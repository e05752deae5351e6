# SPDX-License-Identifier: Apache-2.0
"""Sidecars and a manifest for tars that came from elsewhere, and the check of tars by their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ixc_lightning.datamodules.index import Header, index_path, read_entries, read_header, write_index
from ixc_lightning.datamodules.patterns import expand_shards
from ixc_lightning.datamodules.record_checks import MAX_JSON_BYTES
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import is_remote, shown
from ixc_lightning.datamodules.shard_writer import MANIFEST, Manifest
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

    Raises:
        InputError: an address, because nothing is written there; or as ``expand_shards``.
    """
    if is_remote(shards):
        raise InputError(
            f"{shown(shards)}: only tars on a disk can be indexed or checked; run index on a local copy, and "
            "upload what it writes beside the tars"
        )
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


def write_manifest(folder: Path, shards: Iterable[Indexed]) -> Manifest:
    """Write the manifest of a folder that has none, and return it.

    Args:
        folder: where the shards lie.
        shards: all of them.

    Raises:
        InputError: the shards hold records of several kinds, or none that can be read.
    """
    shards = list(shards)
    kinds = {kind: shard.path for shard in shards if (kind := _kind(shard.path))}
    if len(kinds) != 1:
        found = ", ".join(f"{kind} ({path.name})" for kind, path in kinds.items()) or "none"
        raise InputError(
            f"{folder}: a folder holds records of one kind, but these were found: {found}; "
            "give each kind a folder of its own"
        )
    manifest = Manifest.of(next(iter(kinds)), {shard.path.name: shard.header for shard in shards})
    manifest.save(folder)
    return manifest


def check_shards(paths: Iterable[Path]) -> Iterator[Checked]:
    """Read every shard through, and compare its SHA-256 with those of manifest and sidecar.

    Raises:
        InputError: a manifest or a shard that cannot be read.
    """
    paths = list(paths)
    listed: dict[Path, dict[str, Any]] = {}
    for folder in sorted({path.parent for path in paths}):
        if (folder / MANIFEST).exists():
            listed |= {folder / shard["file"]: shard for shard in Manifest.load(folder).shards}
    for path in paths:
        yield Checked(path, _problem(path, listed.get(path)))


def _problem(path: Path, listed: Mapping[str, Any] | None) -> str:
    known = {} if listed is None else {MANIFEST: listed["sha256"]}
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
