# SPDX-License-Identifier: Apache-2.0
"""From what a user names to a list of shards: folders by their manifests, and a look at every other shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.folders import Folders, Place
from ixc_lightning.datamodules.index import Entry, OnDamage
from ixc_lightning.datamodules.patterns import Found, find_shards
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import is_remote
from ixc_lightning.datamodules.shard_files import LocalFiles, RemoteFiles, ShardFiles, Survey
from ixc_lightning.datamodules.shard_list import FolderShards, NamedShards, ShardList, ShardRun
from ixc_lightning.datamodules.shard_table import ShardRow, ShardTable


class Opened(NamedTuple):
    """Shards that were found.

    Attributes:
        shards: all of them.
        groups: number of shards of each thing that was named.
        local: reads those on a disk.
        remote: reads those at an address, if there are any.
        scanned: indices of shards that nothing but a scan gave, by path or URL.
    """

    shards: ShardList
    groups: list[int]
    local: LocalFiles
    remote: RemoteFiles | None
    scanned: dict[str, list[Entry]]


def open_shards(
    shards: str | Path | Sequence[str | Path],
    *,
    kind: Kind | None,
    cache: ShardCache | None,
    on_damage: OnDamage | None,
) -> Opened:
    """Find shards, and learn how many records each holds; arguments and errors as for ``ShardDataset``."""
    folders = Folders(cache)
    found = find_shards(shards, kind=kind, folders=folders)
    parts = list(chain(*found))
    local, remote = LocalFiles(), RemoteFiles(folders.cache) if any(map(_is_remote, parts)) else None
    scanned: dict[str, list[Entry]] = {}
    runs: list[ShardRun] = []
    for _, group in groupby(parts, type):
        several = list(group)
        runs += (part for part in several if isinstance(part, FolderShards))
        places = chain(*(part for part in several if isinstance(part, list)))
        for run, surveys in _surveyed(places, local, remote, folders, on_damage):
            runs.append(run)
            scanned |= {
                row.file: one.entries
                for row, one in zip(run.table, surveys, strict=True)
                if one.entries is not None
            }
    return Opened(ShardList(runs), [sum(map(len, group)) for group in found], local, remote, scanned)


def _surveyed(
    places: Iterable[Place],
    local: LocalFiles,
    remote: RemoteFiles | None,
    folders: Folders,
    on_damage: OnDamage | None,
) -> Iterator[tuple[NamedShards, list[Survey]]]:
    """Look at shards that were named one by one, or lie in a folder without a manifest."""
    for at_address, group in groupby(places, is_remote):
        named = list(group)
        files: ShardFiles[Any] = remote if remote and at_address else local
        surveys = [files.survey(place, folders, on_damage) for place in named]
        table = ShardTable.of(
            ShardRow(str(place), survey.samples, survey.bytes, survey.sha256)
            for place, survey in zip(named, surveys, strict=True)
        )
        domains = sorted(set().union(*(survey.domains for survey in surveys)))
        yield NamedShards(named, table, domains), surveys


def _is_remote(part: Found) -> bool:
    return part.is_remote if isinstance(part, FolderShards) else any(map(is_remote, part))
