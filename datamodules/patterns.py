# SPDX-License-Identifier: Apache-2.0
"""From what a user writes to the paths of shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import MANIFEST, Manifest
from ixc_lightning.types import InputError


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
    if twice := sorted(str(path) for path, count in Counter(paths).items() if count > 1):
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
