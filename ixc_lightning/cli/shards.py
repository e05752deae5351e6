# SPDX-License-Identifier: Apache-2.0
"""The commands about shards that are there: index and check them."""

from __future__ import annotations

from pathlib import Path

from ixc_lightning.datamodules.indexing import check_shards, index_shards, paths_of, renew_manifest
from ixc_lightning.datamodules.manifest import MANIFEST
from ixc_lightning.types import InputError


def index(shards: str, check: bool = False) -> None:
    """Write what opening shards quickly needs, or check them.

    Every tar gets its .index.jsonl, unless a sound one is there. A folder gets its manifest.json, unless one
    of these shards is there; one of an earlier version is renewed.

    Args:
        shards: a tar, a folder with tars, or a pattern such as data/shard-{000000..000009}.tar.
        check: write nothing, but compare every tar with the checksums in its sidecar and the manifest.

    Raises:
        InputError: a shard cannot be read; or with check, one is not the tar that its checksum was taken of.
    """
    paths = paths_of(shards)
    if check:
        _check(paths)
        return
    indexed = []
    for one in index_shards(paths):
        indexed.append(one)
        samples = f"{one.header.samples:,} samples, {one.header.bytes:,} bytes"
        print(f"{one.path}: {samples}, index {one.action}")
    if not Path(shards).expanduser().is_dir():
        return
    for folder in sorted({path.parent for path in paths}):
        if manifest := renew_manifest(folder, [one for one in indexed if one.path.parent == folder]):
            print(f"{folder / MANIFEST}: {manifest.samples:,} {manifest.kind} records, written")


def _check(paths: list[Path]) -> None:
    bad = []
    for path, problem in check_shards(paths):
        print(f"{path}: {problem or 'sound'}")
        if problem:
            bad.append(f"{path}: {problem}")
    if bad:
        raise InputError(
            f"{len(bad)} of {len(paths)} shards failed the check: {'; '.join(bad)}. Copy these again, "
            "or index them anew if the change was meant"
        )
