# SPDX-License-Identifier: Apache-2.0
"""What the files of a folder say about its shards, on a disk or at an address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ixc_lightning.datamodules.remote import join_url, read_remote, shown, split_url
from ixc_lightning.datamodules.shard_writer import MANIFEST, Manifest
from ixc_lightning.types import InputError

Place: TypeAlias = Path | str
"""A shard or a folder: a path, or a URL."""
REPORT = "conversion.json"
"""What a converter writes into its folder; names the folders of shards below it."""


class Listed(NamedTuple):
    """What the manifest of its folder says of a shard.

    Attributes:
        samples: number of its samples.
        bytes: size of the tar.
        sha256: checksum of the tar in hexadecimal.
        domains: of all shards of the folder.
    """

    samples: int
    bytes: int
    sha256: str
    domains: list[str]


class Folders:
    """Manifests and reports of folders, each read once."""

    def __init__(self) -> None:
        self._manifests: dict[Place, Manifest | None] = {}
        self._listed: dict[Place, dict[str, Listed]] = {}

    def manifest(self, folder: Place) -> Manifest | None:
        """Return the manifest of a folder, or None if it has none.

        Raises:
            InputError: naming the file, if it cannot be read or is no manifest.
        """
        if folder not in self._manifests:
            data = _read(folder, MANIFEST)
            manifest = None if data is None else Manifest.parse(data, name=shown(inside(folder, MANIFEST)))
            self._manifests[folder] = manifest
        return self._manifests[folder]

    def listed(self, shard: Place) -> Listed | None:
        """Return what the manifest of its folder says of a shard, or None if it says nothing."""
        folder, name = (shard.parent, shard.name) if isinstance(shard, Path) else split_url(shard)
        if folder not in self._listed:
            manifest = self.manifest(folder)
            domains = list(manifest.domains) if manifest else []
            self._listed[folder] = {
                entry["file"]: Listed(entry["samples"], entry["bytes"], entry["sha256"], domains)
                for entry in (manifest.shards if manifest else ())
            }
        return self._listed[folder].get(name)

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
