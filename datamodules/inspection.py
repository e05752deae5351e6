# SPDX-License-Identifier: Apache-2.0
"""What shards hold, read once from end to end: counts, lengths, repetitions, media, and what is broken."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.media import IMAGE_FORMATS, MAX_IMAGE_PIXELS
from ixc_lightning.datamodules.processing import ChatEncoder, text_of
from ixc_lightning.datamodules.quarantine import OTHER, BadSample
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import StoreInputError
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError, Record

PROBED = 20
"""Records that are read to learn of which kind the shards are."""
Number = int | float
RATIO = "chosen / rejected, characters"
MAX_CAUSES = 50
"""Causes of broken records that are counted apart; all further ones are counted together."""


class Spread(NamedTuple):
    """How a quantity is distributed: smallest, median, 90th percentile, largest."""

    least: float
    median: float
    high: float
    most: float

    @classmethod
    def of(cls, values: Sequence[Number]) -> Spread:
        """Return the spread of one value or more; percentiles are values that occur."""
        levels = np.percentile(np.asarray(values), [0, 50, 90, 100], method="inverted_cdf")
        return cls(*(float(level) for level in levels))


@dataclass
class Inspection:
    """What shards hold.

    Attributes:
        kind: kind of the records.
        shards: number of shards.
        bytes: size of all shards.
        samples: number of samples, broken ones included.
        modalities, domains, sources: number of sound records of each.
        values: for every quantity its value in each record or medium, by name and unit.
        longer: number of pairs whose chosen response has more characters than the rejected one.
        repeats: number of records, prompts and media that occurred before, by name.
        broken: number of broken records, by cause.
        examples: by cause, the message about the first broken record, which names its place.
    """

    kind: Kind
    shards: int
    bytes: int
    samples: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    values: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    longer: int = 0
    repeats: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def spreads(self) -> dict[str, Spread]:
        """Return the spread of every quantity that has values."""
        return {name: Spread.of(values) for name, values in self.values.items()}

    def add_broken(self, bad: BadSample) -> None:
        """Count a broken record."""
        cause = bad.cause if bad.cause in self.broken or len(self.broken) < MAX_CAUSES else OTHER
        self.broken[cause] += 1
        self.examples.setdefault(cause, bad.reason)


def open_any(
    shards: str | Path | Sequence[str | Path], *, cache: ShardCache | None = None
) -> tuple[ShardDataset, list[BadSample]]:
    """Open shards of whatever kind: that under which most of the first records are sound.

    Args:
        shards: a tar, a folder or a pattern, as for ``ShardDataset``.
        cache: as for ``ShardDataset``.

    Returns:
        The data set, and what cannot be read of damaged shards.

    Raises:
        InputError: a shard cannot be opened, or none of the first records is sound, with what is wrong.
    """
    damage: list[BadSample] = []
    dataset = ShardDataset(shards, kind=None, on_damage=damage.append, cache=cache)
    sound: Counter[Kind] = Counter()
    reason = ""
    for kind in Kind:
        dataset.kind = kind  # it decides how a record is checked, and nothing else
        for number in range(min(PROBED, len(dataset))):
            try:
                dataset.record(number, media=False)
                sound[kind] += 1
            except InputError as error:
                reason = reason or str(error)
    if not sound:
        raise InputError(f"none of the first records is sound, whatever its kind, for example: {reason}")
    dataset.kind = max(sound, key=lambda kind: sound[kind])
    return dataset, damage


def inspect_records(
    dataset: ShardDataset, numbers: Iterable[int], *, encoder: ChatEncoder | None = None
) -> Inspection:
    """Read records, and return what they hold.

    Args:
        dataset: the shards.
        numbers: of the records to read.
        encoder: also count tokens, those of pictures included; slow, because every medium is decoded.

    Raises:
        InputError: shards at an address cannot be fetched.
    """
    found = Inspection(dataset.kind, len(dataset.shards), int(dataset.bytes.sum()))
    seen: defaultdict[str, set[bytes]] = defaultdict(set)
    for number in numbers:
        found.samples += 1
        try:
            record = dataset.record(number)
            sizes = _picture_sizes(record)
            tokens = _tokens(record, encoder) if encoder is not None else {}
        except StoreInputError:  # it says nothing about the record
            raise
        except InputError as error:
            shard, key = dataset.place(number)
            found.add_broken(BadSample(key, shard, str(error)))
            continue
        found.modalities[record.modality] += 1
        found.domains[record.domain] += 1
        found.sources[record.source] += 1
        for name, value in (*_characters(record).items(), *tokens.items(), *_media(record, sizes)):
            found.values[name].append(value)
        found.longer += found.kind is Kind.PREFERENCE and found.values[RATIO][-1] > 1
        for name, content in _contents(record):
            digest = hashlib.blake2b(content, digest_size=8).digest()
            found.repeats[name] += digest in seen[name]
            seen[name].add(digest)
    return found


def _characters(record: Record) -> dict[str, Number]:
    lengths = {name: len(text_of(messages)) for name, messages in _texts(record).items()}
    ratio = {RATIO: lengths["chosen"] / lengths["rejected"]} if "chosen" in lengths else {}
    return {f"{name}, characters": length for name, length in lengths.items()} | ratio


def _tokens(record: Record, encoder: ChatEncoder) -> dict[str, Number]:
    names, (prompt, *answers) = list(_texts(record)), list(_texts(record).values())
    encoded = encoder(record, prompt, answers)
    lengths = [len(encoded.ids), *map(len, encoded.responses)]
    both = {"prompt and response, tokens": lengths[0] + max(lengths[1:], default=0)}
    ratio = {"chosen / rejected, tokens": lengths[1] / lengths[2]} if len(lengths) == 3 else {}
    return {f"{name}, tokens": length for name, length in zip(names, lengths, strict=True)} | both | ratio


def _picture_sizes(record: Record) -> list[tuple[int, int]]:
    """Width and height of every image, from its header, so that nothing is decoded."""
    sizes = []
    for part in record.parts:
        if part["type"] == "image":
            where = f"{record.shard}:{record.key}.{part['file']}"
            try:
                with Image.open(io.BytesIO(record.media[part["file"]]), formats=IMAGE_FORMATS) as image:
                    sizes.append(image.size)
            except Exception as error:  # damaged bytes make Pillow's parsers raise almost anything
                raise InputError(f"{where}: is no picture ({type(error).__name__}: {error})") from None
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise InputError(f"{where}: has {image.width}x{image.height} pixels, more than can be read")
    return sizes


def _media(record: Record, sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[str, Number]]:
    for part in record.parts:
        if part["type"] != "text":
            yield f"{part['type']}, kB", len(record.media[part["file"]]) / 1000
    for width, height in sizes:
        yield "image, width", width
        yield "image, height", height


def _texts(record: Record) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The prompt and the responses of a record, by name."""
    if record.chosen is not None:
        return {"prompt": record.messages, "chosen": record.chosen, "rejected": record.rejected or ()}
    if record.messages[-1]["role"] == "assistant":
        return {"prompt": record.messages[:-1], "response": record.messages[-1:]}
    return {"prompt": record.messages}


def _contents(record: Record) -> Iterator[tuple[str, bytes]]:
    """Give what of a record may occur twice, by name, but for case and white space of its texts."""
    texts = {name: _plain(messages) for name, messages in _texts(record).items()}
    files = [record.media[part["file"]] for part in record.parts if part["type"] != "text"]
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    yield "records", repr((texts, digests)).encode()
    if len(texts) > 1:
        yield "prompts with their media", repr((texts["prompt"], digests)).encode()
    for digest in digests:
        yield "media", digest.encode()


def _plain(messages: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(text_of(messages).casefold().split())
