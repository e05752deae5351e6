# SPDX-License-Identifier: Apache-2.0
"""What the files of a folder say about its shards, on a disk or at an address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.manifest import MANIFEST, Manifest, TableFile, open_table
from ixc_lightning.datamodules.remote import join_url, read_remote, shown, split_url
from ixc_lightning.datamodules.shard_table import ShardRow, ShardTable
from ixc_lightning.types import InputError

Place: TypeAlias = Path | str
"""A shard or a folder: a path, or a URL."""
REPORT = "conversion.json"
"""What a converter writes into its folder; names the folders of shards below it."""


class Folders:
    """Manifests and reports of folders, each read once.

    Args:
        cache: keeps the tables of manifests at an address; if null, that below the home directory, made when
            there is such a table.
    """

    def __init__(self, cache: ShardCache | None = None) -> None:
        self._cache = cache
        self._manifests: dict[Place, Manifest | None] = {}

    @property
    def cache(self) -> ShardCache:
        """What keeps files from an address."""
        self._cache = self._cache or ShardCache()
        return self._cache

    def manifest(self, folder: Place) -> Manifest | None:
        """Return the manifest of a folder, or None if it has none.

        Raises:
            InputError: naming the file, if it cannot be read or is no manifest.
        """
        if folder not in self._manifests:
            data = _read(folder, MANIFEST)
            self._manifests[folder] = None if data is None else self._parse(folder, data)
        return self._manifests[folder]

    def listed(self, shard: Place) -> ShardRow | None:
        """Return what the manifest of its folder says of a shard, or None if it says nothing."""
        folder, name = (shard.parent, shard.name) if isinstance(shard, Path) else split_url(shard)
        manifest = self.manifest(folder)
        number = manifest.shards.find(name) if manifest else None
        return None if manifest is None or number is None else manifest.shards[number]

    def domains(self, shard: Place) -> list[str]:
        """Return the domains of all shards of a shard's folder, as far as its manifest says them."""
        manifest = self.manifest(shard.parent if isinstance(shard, Path) else split_url(shard)[0])
        return list(manifest.domains) if manifest else []

    def parts(self, folder: Place) -> list[Place]:
        """Return the folders of shards that a converter wrote below this one, sorted; else none.

        Raises:
            InputError: naming the report, if it cannot be read or is none.
        """
        data = _read(folder, REPORT)
        if data is None:
            return []
        try:
            names = sorted(json.loads(data)["folders"])
            if not all({"", ".", ".."}.isdisjoint(name.split("/")) for name in names):
                raise ValueError("a folder leads out")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = f"is not the report of a converter ({error})"
            raise InputError(
                f"{shown(inside(folder, REPORT))}: {problem}; delete it, or convert again"
            ) from None
        return [inside(folder, name) for name in names]

    def _parse(self, folder: Place, data: bytes) -> Manifest:
        name = shown(inside(folder, MANIFEST))
        return Manifest.parse(data, name=name, open_table=lambda table: self._open_table(folder, table))

    def _open_table(self, folder: Place, table: TableFile) -> ShardTable:
        if isinstance(folder, Path):
            return open_table(folder, table)
        url = join_url(folder, table.file)
        # Open, it stays in the cache; a process that is spawned maps it, too.
        lease = self.cache.open(url, table.sha256)
        return ShardTable.open(self.cache.path(url), name=shown(url), lease=lease)


def inside(folder: Place, name: str) -> Place:
    """Return a file or folder by its name below a folder."""
    return folder / name if isinstance(folder, Path) else join_url(folder, name)


def _read(folder: Place, name: str) -> bytes | None:
    place = inside(folder, name)
    if not isinstance(place, Path):
        return read_remote(place)
    try:
        return place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}); check who may read it") from None
