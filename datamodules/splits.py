# SPDX-License-Identifier: Apache-2.0
"""The shards of every split of a datamodule, opened together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.index import OnDamage
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import is_remote
from ixc_lightning.datamodules.shards import ShardDataset


def open_splits(
    named: Mapping[str, Sequence[str]],
    *,
    kind: Kind,
    on_damage: OnDamage | None,
    cache_folder: str,
    cache_bytes: int,
) -> dict[str, ShardDataset]:
    """Return the records of every split for which shards are named; all share one cache of remote shards.

    Args:
        named: what names the shards of each split, in order.
        kind: of the records.
        on_damage: takes what cannot be read of a damaged shard; without it, damage raises.
        cache_folder: of the cache; it is made only if a shard lies at an address.
        cache_bytes: that it may take.

    Raises:
        InputError: naming the path or URL, if nothing is there, or it is no shard.
    """
    cache = None
    if any(is_remote(one) for shards in named.values() for one in shards):
        cache = ShardCache(cache_folder, cache_bytes)
    return {
        split: ShardDataset(shards, kind=kind, on_damage=on_damage, cache=cache)
        for split, shards in named.items()
        if shards
    }
