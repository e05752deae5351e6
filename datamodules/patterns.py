# SPDX-License-Identifier: Apache-2.0
"""From what a user writes to shards: paths, and URLs for what lies at an address."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from braceexpand import braceexpand

from ixc_lightning.datamodules.folders import REPORT, Folders, Place, inside
from ixc_lightning.datamodules.manifest import MANIFEST, Manifest
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import WEB, is_remote, join_url, retry, shown
from ixc_lightning.datamodules.shard_list import FolderShards
from ixc_lightning.types import InputError

MAX_LISTED = 10_000
"""A folder of more shards than these is not compared with its manifest: a listing would take too long."""
Found: TypeAlias = list[Place] | FolderShards


def expand_shards(
    shards: str | Path | Sequence[str | Path], *, kind: Kind | None = None, folders: Folders | None = None
) -> list[list[Place]]:
    """Return the shards that each tar, folder, glob or brace pattern stands for; as ``find_shards``."""
    return [list(chain(*group)) for group in find_shards(shards, kind=kind, folders=folders or Folders())]


def find_shards(
    shards: str | Path | Sequence[str | Path], *, kind: Kind | None, folders: Folders
) -> list[list[Found]]:
    """Return what each tar, folder, glob or brace pattern stands for, without naming each shard of a folder.

    A folder with a manifest holds what the manifest lists, so that servers without listings serve it, and a
    million shards cost no more than ten. One on a disk is compared with its manifest as long as it has no
    more than ``MAX_LISTED`` shards; of larger ones, a shard that is missing is an error when it is read. The
    URL of a tar is not looked up: whoever reads it learns whether it is there. A folder that a converter
    wrote stands for the folders of shards below it.

    Args:
        shards: what the user wrote, or a list of it; a leading ``~`` is the home directory.
        kind: a folder whose manifest says another kind is refused; without it, every kind will do.
        folders: reads the manifests.

    Raises:
        InputError: naming the path or URL, if it matches nothing, names a shard twice, or cannot be listed,
            or a folder is not that of its manifest.
    """
    named = [shards] if isinstance(shards, (str, Path)) else shards
    found = [_expand(str(one), kind, folders) for one in named]
    if not any(found):
        raise InputError("no shards: the list is empty; name a folder, a tar or a pattern")
    if twice := _twice(list(chain(*found))):
        raise InputError(f"{twice}: is named twice; name every shard once (weights belong in the mixture)")
    return found


def _twice(found: Sequence[Found]) -> str:
    """Return a shard that is named twice, by what is shown of it, which must tell shards apart."""
    wholes = [one for one in found if isinstance(one, FolderShards) and len(one)]
    singles = [shown(shard) for one in found if isinstance(one, list) for shard in one]
    counts = Counter([*singles, *(shown(whole[0]) for whole in wholes)])
    twice = [name for name, count in counts.items() if count > 1]
    twice += [name for name in singles for whole in wholes if whole.find(name) is not None]
    return min(twice, default="")


def _expand(spec: str, kind: Kind | None, folders: Folders) -> list[Found]:
    spec = spec if is_remote(spec) else os.path.expanduser(spec)
    try:
        names = [spec] if Path(spec).exists() else list(braceexpand(spec))
    except ValueError as error:
        raise InputError(
            f"{shown(spec)}: is no brace pattern ({error}); write it like train-{{000000..000015}}.tar"
        ) from None
    found: list[Found] = []
    for name in names:
        if is_remote(name):
            found += _remote(name, kind, folders)
            continue
        matches = [name] if Path(name).exists() else sorted(glob(name))
        if not matches:
            problem = "no such shard" if name == spec else f"no such shard (from {spec})"
            raise InputError(f"{name}: {problem}; name a folder, a tar or a pattern that matches one")
        for path in map(Path, matches):
            found += _folder(path, kind, folders) if path.is_dir() else [[path]]
    return found


def _folder(folder: Path, kind: Kind | None, folders: Folders) -> list[Found]:
    if (manifest := folders.manifest(folder)) and len(manifest.shards):
        _check_kind(folder, manifest, kind)
        if len(manifest.shards) <= MAX_LISTED:
            _check_listing(folder, manifest)
        return [FolderShards(folder, manifest)]
    if paths := sorted(folder.glob("*.tar")):
        return [list(paths)]
    if parts := _parts(folder, kind, folders):
        return parts
    raise InputError(f"{folder}: the folder holds no .tar; name the folder whose shards you want")


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """Raise if the tars of a folder are not those of its manifest."""
    there = {name for name in os.listdir(folder) if name.endswith(".tar")}
    listed = {manifest.shards.file(number) for number in range(len(manifest.shards))}
    if missing := min(listed - there, default=""):
        raise InputError(
            f"{folder / missing}: is in the manifest, but not in the folder; copy the folder again"
        )
    if extra := min(there - listed, default=""):
        raise InputError(
            f"{folder / extra}: is in the folder, but not in the manifest; run `index` on the folder, "
            "or move the tar elsewhere"
        )


def _remote(url: str, kind: Kind | None, folders: Folders) -> list[Found]:
    parts = urlsplit(url, allow_fragments=False)
    # In a web address a question mark starts the query.
    if re.search("[*[]", parts.path) if parts.scheme in WEB else re.search("[*?[]", url):
        return [_found(url, lambda filesystem, path: filesystem.glob(path), "no shard matches")]
    if parts.path.endswith(".tar"):
        return [[url]]
    if manifest := folders.manifest(url):
        _check_kind(url, manifest, kind)
        return [FolderShards(url, manifest)]
    # Web servers know a folder by the slash at its end.
    return _parts(url, kind, folders) or [
        _found(
            join_url(url, ""),
            lambda filesystem, path: filesystem.ls(path, detail=False),
            "the folder holds no .tar",
        )
    ]


def _parts(folder: Place, kind: Kind | None, folders: Folders) -> list[Found]:
    """Return the shards below a folder that a converter wrote, of the kind; none if it is not one's."""
    parts = {part: folders.manifest(part) for part in folders.parts(folder)}
    if missing := [part for part, manifest in parts.items() if manifest is None]:
        problem = f"is missing, but {REPORT} names its folder"
        raise InputError(f"{shown(inside(missing[0], MANIFEST))}: {problem}; copy the folder again")
    kinds = {manifest.kind for manifest in parts.values() if manifest}
    if kinds and kind and kind not in kinds:
        raise _other_kind(folder, " and ".join(sorted(kinds)), kind)
    chosen = [part for part, manifest in parts.items() if manifest and kind in (None, manifest.kind)]
    return list(chain(*(_expand(str(part), kind, folders) for part in chosen)))


def _found(url: str, list_paths: Callable[[Any, str], list[str]], nothing: str) -> list[Place]:
    """Return the URLs of the tars among the paths that a listing gives, sorted."""

    def request(filesystem: Any, path: str) -> list[str]:
        filesystem.invalidate_cache()
        paths = (name for name in list_paths(filesystem, path) if name.endswith(".tar"))
        return sorted(filesystem.unstrip_protocol(name) for name in paths)

    if urls := retry(url, request):
        return list(urls)
    raise InputError(f"{shown(url)}: {nothing}; check the address, or name the tars one by one")


def _check_kind(folder: Place, manifest: Manifest, kind: Kind | None) -> None:
    if kind not in (None, manifest.kind):
        raise _other_kind(folder, manifest.kind, kind)


def _other_kind(folder: Place, found: str, kind: Kind) -> InputError:
    return InputError(
        f"{shown(folder)}: holds {found} records, but is read as {kind} data; name the other folder"
    )
