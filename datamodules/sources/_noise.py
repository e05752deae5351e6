# SPDX-License-Identifier: Apache-2.0
"""Instruction records that are spoilt on purpose, with the answers and the media of other records.

The noise is of the three kinds that the paper finds by low scores (§4.3):

    hallucinated   the answer of another record to the same question, where another answer is right
    empty          an answer that says nothing
    mismatched     the pictures, or the clip, of another record with the same question and another answer

Where no record asks the same, one of the same domain and the same media gives its answer or its pictures.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from random import Random
from typing import Any, Literal, TypeAlias

from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample
from ixc_lightning.types import Record

Noise: TypeAlias = Literal["hallucinated", "empty", "mismatched"]
NOISES: tuple[Noise, ...] = ("hallucinated", "empty", "mismatched")
EMPTY = ("...", ".", "-")
"""Answers that say nothing. One without any letter is no record: reading it is an error that says so."""
MAX_TRIES = 50
"""Records that are looked at for one that differs."""


class NoiseMaker:
    """Spoils the samples of an instruction set. In memory are a few numbers per record.

    Args:
        shards: the instruction set.
        random: all choices, which depend on the order of the calls.
    """

    def __init__(self, shards: SampleShards, random: Random) -> None:
        self.shards = shards
        self.random = random
        self.truths: list[bytes] = []
        self.alike: defaultdict[bytes, list[int]] = defaultdict(list)
        for number in range(len(shards)):
            record = shards.record(number, media=False)
            self.truths.append(_digest(_truth(record)))
            for key in _likenesses(record):
                self.alike[key].append(number)

    def spoilt(self, kind: Noise, number: int, sample: Sample) -> Sample | None:
        """The sample of this number with noise of a kind, or None where it cannot have it."""
        if kind == "empty":
            return _with_response(sample, self.random.choice(EMPTY))
        if kind == "mismatched" and not sample.media:
            return None
        for other in self._others(number):
            donor = self.shards.sample(other, media=kind == "mismatched")
            if kind == "hallucinated":
                return _with_response(sample, donor.record["messages"][-1]["content"])
            if sorted(donor.media.values()) != sorted(sample.media.values()):
                return _with_media(sample, donor)
        return None

    def _others(self, number: int) -> Iterator[int]:
        """Records with another answer, at random: with the same question first, then with the same media."""
        for key in _likenesses(self.shards.record(number, media=False)):
            for _ in range(MAX_TRIES):
                other = self.random.choice(self.alike[key])
                if self.truths[other] != self.truths[number]:
                    yield other


def _likenesses(record: Record) -> list[bytes]:
    """Keys that records share which can give each other answers and media, the closest likeness first."""
    types = [part["type"] for part in record.parts if part["type"] != "text"]
    turns = [
        (message["role"], [part.get("text") for part in message["content"]])
        for message in record.messages[:-1]
    ]
    return [_digest(["question", types, turns]), _digest(["domain", types, record.domain])]


def _truth(record: Record) -> Any:
    """What tells a right answer from another one: the reference, or the answer's own words."""
    if record.answer is not None:
        return record.answer
    return [part["text"] for part in record.messages[-1]["content"]]


def _with_response(sample: Sample, content: Any) -> Sample:
    messages = [*sample.record["messages"][:-1], {"role": "assistant", "content": content}]
    return sample._replace(record={**sample.record, "messages": messages})


def _with_media(sample: Sample, donor: Sample) -> Sample:
    """The sample with the donor's media in the places of its own."""
    contents = [message["content"] for message in donor.record["messages"]]
    media = (
        part
        for content in contents
        if not isinstance(content, str)
        for part in content
        if part["type"] != "text"
    )

    def replaced(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [part if part["type"] == "text" else next(media) for part in content]

    messages = [{**message, "content": replaced(message["content"])} for message in sample.record["messages"]]
    return Sample(sample.key, {**sample.record, "messages": messages}, donor.media)


def _digest(value: Any) -> bytes:
    return blake2b(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=8).digest()
