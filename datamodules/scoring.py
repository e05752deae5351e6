# SPDX-License-Identifier: Apache-2.0
"""Responses to be scored by the ``predict`` command."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import numpy as np
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from ixc_lightning.datamodules.candidate_files import CandidateSource, open_candidates
from ixc_lightning.datamodules.candidates import EncodedCandidates, candidate_batch, encode_candidates
from ixc_lightning.datamodules.contrast import ContrastCandidates
from ixc_lightning.datamodules.once import OnceDataModule
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.types import CandidateBatch, InputError

MAX_TRIES = 1000
"""Records that are tried in a row when a batch needs a good one and has none."""


class ScoringDataModule(OnceDataModule):
    """Shards or JSON lines in, ``CandidateBatch`` out, each record once, in their order.

    Args:
        processor: hub id or folder of the model's processor. The command line takes it from the model's
            ``source``.
        predict: files ``*.jsonl``, one prompt with its responses on each line; or shards: a folder, a tar, a
            pattern such as ``data/shard-{000000..000009}.tar``; or a list of either.
        kind: of shards: ``preference`` scores both responses of each pair, ``instruction`` the last turn.
        others: of instruction shards: answers of this many other records that each prompt is scored with too.
        batch_size: prompts per rank and step.
        num_workers: processes per rank that decode and encode; 0 does it in the scoring process.
        max_tokens: most tokens of a prompt and one response; a longer sample is an error, never cut.
        video_frames: frames taken from each video; give what the model was trained with.
        response_suffix: text put after every response, such as a reward token; give what the model was
            trained with.
        allow_urls: whether JSON lines may name media by http(s) URLs.
        on_bad_sample: ``raise`` ends the run at a record that cannot be scored; ``quarantine`` lists it among
            the scores with the reason.
    """

    def __init__(
        self,
        processor: str,
        *,
        predict: str | list[str] | None = None,
        kind: Literal["preference", "instruction"] = "preference",
        others: int = 0,
        batch_size: int = 8,
        num_workers: int = 0,
        max_tokens: int | None = None,
        video_frames: int = 8,
        response_suffix: str = "",
        allow_urls: bool = False,
        on_bad_sample: Literal["raise", "quarantine"] = "raise",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if others < 0 or (others and kind != "instruction"):
            raise InputError(f"data.others is {others}: it is for data.kind instruction, and not negative")
        self.processor = processor
        self.predict = predict
        self.kind = Kind(kind)
        self.others = others
        self.max_tokens = max_tokens
        self.video_frames = video_frames
        self.response_suffix = response_suffix
        self.allow_urls = allow_urls
        self.on_bad_sample = on_bad_sample

    def setup(self, stage: str) -> None:
        """Load the processor and open the data.

        Raises:
            InputError: nothing is named, or what is named cannot be read.
        """
        if self.predict is None:
            raise InputError("data.predict names nothing to score: give shards, or a .jsonl file")
        self.encoder = ChatEncoder(
            self.processor,
            max_tokens=self.max_tokens,
            video_frames=self.video_frames,
            response_suffix=self.response_suffix,
        )
        self.source: CandidateSource = (
            ContrastCandidates(self.predict, others=self.others)
            if self.others
            else open_candidates(self.predict, kind=self.kind, allow_urls=self.allow_urls)
        )
        self.todo = np.arange(len(self.source))

    def __len__(self) -> int:
        """Number of records, scored before or not."""
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """What differs when other data are scored, or are read in another way."""
        settings = (self.source.fingerprint, self.kind, self.video_frames, self.response_suffix)
        return blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def batches(self) -> tuple[CandidateBatches, DistributedSampler[CandidateBatch]]:
        """This rank's batches of what is left, and their numbers."""
        rank, world_size = self.ranks
        batches = CandidateBatches(
            self.source,
            self.todo,
            self.encoder,
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
            keeps_going=self.on_bad_sample == "quarantine",
        )
        return batches, DistributedSampler(batches, num_replicas=1, rank=0, shuffle=False)


class CandidateBatches(Dataset[CandidateBatch]):
    """This rank's batch of each step: its slice of the records that all ranks take together.

    A slice without a record that can be scored gets one that is marked as not real, so that no rank waits for
    another.

    Args:
        source: the records.
        todo: numbers of those that are to be scored, ascending.
        encoder: encodes prompts and responses.
        batch_size: records of a slice.
        rank: this process.
        world_size: number of processes.
        keeps_going: whether a bad record is left out and reported with its batch; else it raises.
    """

    def __init__(
        self,
        source: CandidateSource,
        todo: np.ndarray,
        encoder: ChatEncoder,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        keeps_going: bool,
    ) -> None:
        self.source = source
        self.todo = todo
        self.encoder = encoder
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.keeps_going = keeps_going

    def __len__(self) -> int:
        """Steps."""
        return -(-len(self.todo) // (self.batch_size * self.world_size))

    def __getitem__(self, step: int) -> CandidateBatch:
        """Return this rank's batch of a step.

        Raises:
            InputError: naming the record, if one is bad and ``keeps_going`` is off, or too many are.
        """
        start = (step * self.world_size + self.rank) * self.batch_size
        samples: list[EncodedCandidates] = []
        bad: list[tuple[int, str, str, str]] = []
        for row in self.todo[start : start + self.batch_size].tolist():
            try:
                samples.append(self._encoded(row))
            except InputError as error:
                if not self.keeps_going:
                    raise
                shard, key = self.source.place(row)
                bad.append((row, key, shard, str(error)))
        if samples:
            return candidate_batch(samples, bad=bad)
        return candidate_batch([self._any()], is_real=False, bad=bad)

    def _encoded(self, row: int) -> EncodedCandidates:
        return encode_candidates(self.encoder, self.source.candidates(row), row=row)

    def _any(self) -> EncodedCandidates:
        """Return a record that can be scored, to fill a batch."""
        for row in range(min(MAX_TRIES, len(self.source))):
            try:
                return self._encoded(row)
            except InputError:
                continue
        raise InputError(
            f"the first {min(MAX_TRIES, len(self.source)):,} records are all bad: mend the data, or look at "
            "the first one with data.on_bad_sample raise"
        )
