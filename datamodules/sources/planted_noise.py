# SPDX-License-Identifier: Apache-2.0
"""An instruction set in which some records are spoilt on purpose, to measure how well cleaning finds them.

Which noise a record has is in its ``answer``, which no model reads: ``{"noise": "empty", "answer": …}``, with
what was there; sound records have ``{"noise": null, "answer": …}``. ``_noise`` tells the kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import track

from ixc_lightning.datamodules.manifest import Manifest
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.sources._noise import NOISES, Noise, NoiseMaker
from ixc_lightning.types import InputError


def convert(
    source: str, out: str, *, share: float = 0.15, kinds: Sequence[Noise] = NOISES, seed: int = 0
) -> Manifest:
    """Write an instruction set again, with noise in a share of its records, and print how many have which.

    All else stays as it is, media bytes included. Each spoilt record has one of the kinds that it can have,
    all equally likely: a record without media cannot be mismatched. The same arguments give the same bytes.

    Args:
        source: shards of instruction records: a tar, a folder, or a pattern.
        out: folder to write; it must not exist, or be empty.
        share: of the records that get noise.
        kinds: which noise to plant: hallucinated, empty, mismatched.
        seed: of all choices.

    Returns:
        What the folder holds.

    Raises:
        InputError: ``source`` cannot be read, ``out`` is not empty, or a setting is out of its range.
    """
    if not 0 < share < 1:
        raise InputError(f"convert planted_noise: share is {share}, but must lie between 0 and 1")
    if not kinds:
        raise InputError(f"convert planted_noise: kinds is empty; name some of {', '.join(NOISES)}")
    shards = SampleShards(source, kind=Kind.INSTRUCTION)
    counts: dict[str, int] = dict.fromkeys(("sound", *kinds), 0)
    random = Random(f"{seed}/planted-noise")
    samples = track(
        planted(shards, random, share=share, kinds=kinds, counts=counts),
        "planting",
        len(shards),
        console=Console(stderr=True),
        transient=True,
    )
    manifest = write_shards(samples, Path(out), kind=Kind.INSTRUCTION)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    print(f"{manifest.samples:,} records: {shown}")
    return manifest


def planted(
    shards: SampleShards, random: Random, *, share: float, kinds: Sequence[Noise], counts: dict[str, int]
) -> Iterator[Sample]:
    """The samples of an instruction set in their order, some of them spoilt.

    Args:
        shards: the instruction set.
        random: all choices.
        share: of the records that get noise.
        kinds: which noise.
        counts: where the samples are counted by their noise, ``sound`` ones included.
    """
    chosen = set(random.sample(range(len(shards)), round(share * len(shards))))
    maker = NoiseMaker(shards, random)
    for number in range(len(shards)):
        sample, noise = shards.sample(number), None
        for kind in random.sample(kinds, len(kinds)) if number in chosen else ():
            spoilt = maker.spoilt(kind, number, sample)
            if spoilt is not None:
                sample, noise = spoilt, kind
                break
        counts[noise or "sound"] += 1
        answer = {"noise": noise, "answer": sample.record.get("answer")}
        yield sample._replace(record={**sample.record, "answer": answer})
