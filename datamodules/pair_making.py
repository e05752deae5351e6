# SPDX-License-Identifier: Apache-2.0
"""Prompts whose answers become preference pairs, and the shards of these pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ixc_lightning.datamodules.batches import MAX_TRIES, BatchDataset, StepSampler
from ixc_lightning.datamodules.chat import ChatMessages, chat_messages
from ixc_lightning.datamodules.collate import Sample as EncodedSample
from ixc_lightning.datamodules.once import OnceDataModule
from ixc_lightning.datamodules.order import FILL, Order, Places
from ixc_lightning.datamodules.pair_shards import write_pairs
from ixc_lightning.datamodules.processing import ChatEncoder, Encoded, text_of
from ixc_lightning.datamodules.prompts import PromptCollator, good_rows
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample
from ixc_lightning.types import InputError, PromptBatch, Record


class PairMakingDataModule(OnceDataModule):
    """Shards in, ``PromptBatch`` out, each record once; and preference shards of what became of them.

    Args:
        processor: hub id or folder of the policy's processor. The command line takes it from the policy's
            ``source``.
        predict: a folder of shards, a tar, a pattern such as ``data/shard-{000000..000009}.tar``, or a list.
        kind: of the shards: ``prompt``; or ``instruction``, whose last turn is the reference that takes part
            as one more response.
        limit: take the first so many records at most; a later run with a higher limit goes on behind them.
        batch_size: prompts per rank and step.
        num_workers: processes per rank that decode and encode; 0 does it in the answering process.
        max_tokens: most tokens of a prompt; a longer one is an error, never cut.
        video_frames: frames taken from each video, for the policy and for a judge that looks at pictures.
        on_bad_sample: ``raise`` ends the run at a record that cannot be used; ``quarantine`` counts it.
    """

    def __init__(
        self,
        processor: str,
        *,
        predict: str | list[str] | None = None,
        kind: Literal["prompt", "instruction"] = "prompt",
        limit: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        max_tokens: int | None = None,
        video_frames: int = 8,
        on_bad_sample: Literal["raise", "quarantine"] = "raise",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if limit is not None and limit < 1:
            raise InputError(f"data.limit is {limit}, but must be at least 1, or null for all")
        self.processor = processor
        self.predict = predict
        self.limit = limit
        self.kind = Kind(kind)
        self.max_tokens = max_tokens
        self.video_frames = video_frames
        self.on_bad_sample = on_bad_sample

    def setup(self, stage: str) -> None:
        """Load the processor and open the shards.

        Raises:
            InputError: nothing is named, or what is named cannot be read.
        """
        if self.predict is None:
            raise InputError("data.predict names nothing to answer: give shards of prompts or instructions")
        self.encoder = ChatEncoder(self.processor, max_tokens=self.max_tokens, video_frames=self.video_frames)
        self.records = SampleShards(self.predict, kind=self.kind)
        self.domains = self.records.domains
        self.todo = np.arange(len(self))

    def __len__(self) -> int:
        """Number of records to answer, done before or not."""
        return min(len(self.records), self.limit or len(self.records))

    @property
    def fingerprint(self) -> str:
        """What differs when other data are answered, or are read in another way."""
        shards = list(zip(self.records.shards, self.records.counts.tolist(), strict=True))
        return blake2b(repr((shards, self.kind, self.video_frames)).encode(), digest_size=16).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """What was answered, for the report."""
        return {"predict": self.predict, "kind": self.kind.value, "records": len(self)}

    def batches(self) -> tuple[RemainingBatches, StepSampler]:
        """This rank's batches of what is left, and where their steps begin."""
        kind = ReferencedPrompts if self.kind is Kind.INSTRUCTION else PromptCollator
        rank, world_size = self.ranks
        batches = RemainingBatches(
            self.records,
            Remaining(self.todo),
            kind(self.encoder, self.domains),
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
            keeps_going=self.on_bad_sample == "quarantine",
        )
        return batches, StepSampler(batches, lambda: (0, 0))

    def rows(self, batch: PromptBatch, step: int) -> tuple[list[int], list[int]]:
        """Numbers of the records in this rank's batch of a step: of its rows, and of its bad samples."""
        rank, world_size = self.ranks
        start = (step * world_size + rank) * self.batch_size
        here = self.todo[start : start + self.batch_size].tolist()
        good = good_rows(batch, here, self._name)
        return good, [row for row in here if row not in good]

    def reference(self, row: int) -> str | None:
        """The response that came with a record; None of a prompt."""
        if self.kind is Kind.PROMPT:
            return None
        return text_of(self.records.record(row, media=False).messages[-1:])

    def conversation(self, row: int) -> ChatMessages:
        """The prompt as chat completions are asked: pictures as data URLs, clips as their sampled frames.

        Raises:
            InputError: naming the record, if it has become unreadable.
        """
        record = self.records.record(row)
        return chat_messages(record, self._prompt(record.messages), video_frames=self.video_frames)

    def write_pairs(
        self, folder: Path, made: Iterable[dict[str, Any]], *, summary: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write the pairs, as ``pair_shards.write_pairs`` says, and return the report.

        Raises:
            InputError: naming the record, if one has become unreadable.
        """
        return write_pairs(folder, made, self._raw, summary=lambda: {**summary(), "data": self.provenance})

    def _raw(self, row: int) -> Sample:
        """A record as it lies in its shard, without the response of an instruction."""
        sample = self.records.sample(row)
        return sample._replace(record={**sample.record, "messages": self._prompt(sample.record["messages"])})

    def _name(self, row: int) -> str:
        try:
            return self.records.name(row)
        except InputError:  # the index of its shard is damaged, so nobody knows its key
            return ""

    def _prompt(self, messages: Sequence[Any]) -> Sequence[Any]:
        return messages[:-1] if self.kind is Kind.INSTRUCTION else messages


class Remaining(Order):
    """Some of the records, each once.

    Args:
        rows: their numbers, in the order in which they come.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def records(self, epoch: int, places: Places) -> Places:
        """The numbers at the places, and ``FILL`` behind the last one."""
        return np.where(places < len(self.rows), self.rows[np.minimum(places, len(self.rows) - 1)], FILL)


class RemainingBatches(BatchDataset):
    """Batches that are filled from all records, for those that remain may all be bad."""

    def _any_sample(self, epoch: int, place: int) -> EncodedSample:
        tries = min(MAX_TRIES, len(self.records))
        found = (self._sample(index, []) for index in range(tries))
        sample = next((one for one in found if one is not None), None)
        if sample is None:
            raise InputError(
                f"the first {tries:,} records are all bad: mend the data, or look at the first one with "
                "data.on_bad_sample raise"
            )
        return sample


class ReferencedPrompts(PromptCollator):
    """Instruction records to a ``PromptBatch`` whose ``reference`` is their last turn."""

    def encode(self, record: Record) -> Encoded:
        """Encode the prompt, which alone must keep to ``max_tokens``, and the last turn as bare text."""
        encoded = self.encoder(record, record.messages[:-1], [])
        ids = self.encoder.tokenizer(text_of(record.messages[-1:]), add_special_tokens=False)["input_ids"]
        return encoded._replace(responses=[torch.tensor(ids, dtype=torch.long)])
