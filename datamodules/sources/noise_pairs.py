# SPDX-License-Identifier: Apache-2.0
"""Pairs of a good answer and one that is plainly bad, from an instruction set that is known to be sound.

A reward model that only ever compared good answers with near misses says nothing sound about answers of a
wholly other kind; cleaning meets these. Mixed among the preference pairs, such pairs teach it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track

from ixc_lightning.datamodules.manifest import Manifest
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.sources._noise import Noise, NoiseMaker
from ixc_lightning.types import InputError


def convert(source: str, out: str, *, empty_share: float = 0.15, seed: int = 0) -> Manifest:
    """Write preference pairs: chosen is a record's answer, rejected that of another one, or an empty one.

    The other answer is right for another record with the same question, or for one of the same domain.
    Records whose answer is the only one of their domain give no pair. The same arguments give the same bytes.

    Args:
        source: shards of instruction records: a tar, a folder, or a pattern.
        out: folder to write; it must not exist, or be empty.
        empty_share: of the pairs whose rejected answer says nothing.
        seed: of all choices.

    Returns:
        What the folder holds.

    Raises:
        InputError: ``source`` cannot be read, ``out`` is not empty, or the share is out of its range.
    """
    if not 0 <= empty_share <= 1:
        raise InputError(f"convert noise_pairs: empty_share is {empty_share}, but lies between 0 and 1")
    shards = SampleShards(source, kind=Kind.INSTRUCTION)
    pairs = track(
        _pairs(shards, Random(f"{seed}/noise-pairs"), empty_share),
        "pairing",
        len(shards),
        console=Console(stderr=True),
        transient=True,
    )
    manifest = write_shards(pairs, Path(out), kind=Kind.PREFERENCE)
    print(f"{len(shards):,} records gave {manifest.samples:,} pairs")
    return manifest


def _pairs(shards: SampleShards, random: Random, empty_share: float) -> Iterator[Sample]:
    maker = NoiseMaker(shards, random)
    for number in range(len(shards)):
        sample = shards.sample(number)
        kind: Noise = "empty" if random.random() < empty_share else "hallucinated"
        spoilt = maker.spoilt(kind, number, sample)
        if spoilt is None:
            continue
        *prompt, chosen = sample.record["messages"]
        rejected = spoilt.record["messages"][-1]
        if _text(chosen) != _text(rejected):
            pair = {"messages": prompt, "chosen": [chosen], "rejected": [rejected]}
            yield sample._replace(record={**sample.record, **pair})


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
