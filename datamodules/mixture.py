# SPDX-License-Identifier: Apache-2.0
"""What a user names to train on: shards, or several sources with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from ixc_lightning.datamodules.order import Part
from ixc_lightning.types import InputError


@dataclass
class Source:
    """Shards in a mixture.

    Args:
        shards: a folder, a tar, a pattern such as ``data/shard-{000000..000009}.tar``, or a list of them;
            each may be a URL.
        weight: passes over them in one epoch; with 0.5, each epoch takes half and the next one the rest.
    """

    shards: str | list[str]
    weight: float = 1.0

    @property
    def names(self) -> list[str]:
        """Everything that ``shards`` names, as a list."""
        return as_list(self.shards)


def as_list(shards: str | list[str] | None) -> list[str]:
    """Return what names shards as a list; none if nothing does."""
    return [shards] if isinstance(shards, str) else list(shards or ())


def as_sources(train: str | list[str] | list[Source] | None) -> list[Source]:
    """Return what was given for training as sources; plain names are one source together.

    Raises:
        InputError: names and sources are mixed.
    """
    if train is None:
        return []
    given = [train] if isinstance(train, str) else train
    names = [one for one in given if isinstance(one, str)]
    if names and len(names) < len(given):
        raise InputError("data.train mixes paths with sources: give every one of them as shards and weight")
    return [Source(names)] if names else [one for one in given if isinstance(one, Source)]


def source_ends(sources: Sequence[Source], groups: Sequence[int]) -> Int64[np.ndarray, " N"]:
    """Return behind which shard each source ends, from the number of shards of each name."""
    sizes = iter(groups)
    return np.cumsum([sum(islice(sizes, len(source.names))) for source in sources])


def as_parts(sources: Sequence[Source], counts: Sequence[Int64[np.ndarray, " _"]]) -> list[Part]:
    """Return the sources as parts of an order, from the number of samples of each of their shards.

    Raises:
        InputError: nothing is left of a source.
    """
    for source, part in zip(sources, counts, strict=True):
        if not part.sum():
            raise InputError(
                f"data.train: nothing is left of {source.shards}: loosen data.filters, or leave it out"
            )
    return [Part(part, source.weight) for source, part in zip(sources, counts, strict=True)]


def check_window(
    sizes: Sequence[Int64[np.ndarray, " _"]], *, window: int, cache_bytes: float, advice: str
) -> None:
    """Raise if the shards whose samples are mixed do not fit into the cache: batches would fetch them anew.

    Args:
        sizes: bytes of the shards of each source; 0 for those on a disk.
        window: shards of a source whose samples are mixed.
        cache_bytes: size of the cache.
        advice: what to do, for the message.

    Raises:
        InputError: they do not fit.
    """
    needed = sum(_largest(source, window) for source in sizes)
    if needed > cache_bytes:
        raise InputError(
            f"the {window} shards of each source whose samples are mixed take {needed / 1e9:.3g} GB, but the "
            f"cache holds {cache_bytes / 1e9:.3g} GB: {advice}"
        )


def _largest(sizes: Int64[np.ndarray, " _"], number: int) -> int:
    """Return the sum of the largest ones."""
    if not sizes.any() or len(sizes) <= number:
        return int(sizes.sum())
    return int(np.partition(sizes, len(sizes) - number)[-number:].sum())
