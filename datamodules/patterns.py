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
from typing import Any
from urllib.parse import urlsplit

from braceexpand import braceexpand

from ixc_lightning.datamodules.folders import REPORT, Folders, Place, inside
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import WEB, is_remote, join_url, retry, shown
from ixc_lightning.datamodules.shard_writer import MANIFEST, Manifest
from ixc_lightning.types import InputError


def expand_shards(
    shards: str | Path | Sequence[str | Path], *, kind: Kind | None = None, folders: Folders | None = None
) -> list[list[Place]]:
    """Return the shards that each tar, folder, glob or brace pattern stands for.

    A folder with a manifest at an address holds what the manifest lists, so that servers without listings
    serve it, too. The URL of a tar is not looked up: whoever reads it learns whether it is there. A folder
    that a converter wrote stands for the folders of shards below it.

    Args:
        shards: what the user wrote, or a list of it; a leading ``~`` is the home directory.
        kind: a folder whose manifest says another kind is refused; without it, every kind will do.
        folders: reads the manifests.

    Raises:
        InputError: naming the path or URL, if it matches nothing, names a shard twice, or cannot be listed,
            or a folder is incomplete.
    """
    folders = folders or Folders()
    named = [shards] if isinstance(shards, (str, Path)) else shards
    found = [_expand(str(one), kind, folders) for one in named]
    if not any(found):
        raise InputError("no shards: the list is empty; name a folder, a tar or a pattern")
    # By what is shown of them, which a message or a batch must tell apart.
    counts = Counter(shown(shard) for shard in chain(*found))
    if twice := min((name for name, count in counts.items() if count > 1), default=""):
        raise InputError(f"{twice}: is named twice; name every shard once (weights belong in the mixture)")
    return found


def _expand(spec: str, kind: Kind | None, folders: Folders) -> list[Place]:
    spec = spec if is_remote(spec) else os.path.expanduser(spec)
    try:
        names = [spec] if Path(spec).exists() else list(braceexpand(spec))
    except ValueError as error:
        raise InputError(
            f"{shown(spec)}: is no brace pattern ({error}); write it like train-{{000000..000015}}.tar"
        ) from None
    found: list[Place] = []
    for name in names:
        if is_remote(name):
            found += _remote(name, kind, folders)
            continue
        matches = [name] if Path(name).exists() else sorted(glob(name))
        if not matches:
            problem = "no such shard" if name == spec else f"no such shard (from {spec})"
            raise InputError(f"{name}: {problem}; name a folder, a tar or a pattern that matches one")
        for path in map(Path, matches):
            found += _folder(path, kind, folders) if path.is_dir() else [path]
    return found


def _folder(folder: Path, kind: Kind | None, folders: Folders) -> list[Place]:
    paths: list[Place] = sorted(folder.glob("*.tar"))
    if not paths:
        if parts := _parts(folder, kind, folders):
            return parts
        raise InputError(f"{folder}: the folder holds no .tar; name the folder whose shards you want")
    if manifest := folders.manifest(folder):
        _check_kind(folder, manifest, kind)
        if missing := sorted({shard["file"] for shard in manifest.shards} - {path.name for path in paths}):
            raise InputError(
                f"{folder / missing[0]}: is in the manifest, but not in the folder; copy the folder again"
            )
    return paths


def _remote(url: str, kind: Kind | None, folders: Folders) -> list[Place]:
    parts = urlsplit(url, allow_fragments=False)
    # In a web address a question mark starts the query.
    if re.search("[*[]", parts.path) if parts.scheme in WEB else re.search("[*?[]", url):
        return _found(url, lambda filesystem, path: filesystem.glob(path), "no shard matches")
    if parts.path.endswith(".tar"):
        return [url]
    if manifest := folders.manifest(url):
        _check_kind(url, manifest, kind)
        return sorted(join_url(url, shard["file"]) for shard in manifest.shards)
    # Web servers know a folder by the slash at its end.
    return _parts(url, kind, folders) or _found(
        join_url(url, ""),
        lambda filesystem, path: filesystem.ls(path, detail=False),
        "the folder holds no .tar",
    )


def _parts(folder: Place, kind: Kind | None, folders: Folders) -> list[Place]:
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
