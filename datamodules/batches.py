# SPDX-License-Identifier: Apache-2.0
"""From the order of the samples to batches: each worker makes whole batches, each batch knows its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from ixc_lightning.datamodules.collate import Collator, Sample
from ixc_lightning.datamodules.order import FILL, Order, TrainingOrder
from ixc_lightning.datamodules.quarantine import BadSample
from ixc_lightning.datamodules.remote import StoreInputError
from ixc_lightning.datamodules.steps import Budget, BudgetedSteps, CountedSteps, Steps
from ixc_lightning.types import InputError, Record

MAX_TRIES = 1000
"""Samples that are tried in a row when a batch needs a good one and has none."""


@runtime_checkable
class Records(Protocol):
    """What records are read from: a ``ShardDataset``, or a selection of its records."""

    def __len__(self) -> int:
        """Number of records."""

    def record(self, index: int, *, media: bool = True) -> Record:
        """Return record ``index``."""

    def place(self, index: int) -> tuple[str, str]:
        """Return shard and key of record ``index``."""

    @property
    def is_remote(self) -> bool:
        """Whether any of them lies at an address."""

    def prefetch(self, indices: Int64[np.ndarray, " N"]) -> None:
        """Begin to fetch what lies at an address, in this order, in the background."""


class BatchDataset(Dataset[Any]):
    """The batches of one rank, each by the place in the order where the step of all ranks begins.

    A step takes samples that follow each other in the order, ``batch_size`` for each rank or as many as fit
    into its budget of tokens; each rank takes its slice of them. The slice is shorter where the order ends or
    samples are bad. One that is empty gets a copy of a good sample, marked as not real, so that no rank waits
    for another.

    Before a batch is made, the shards of those to come are named to the records, which fetch what lies at an
    address. Each worker looks ahead at its own.

    Args:
        records: where the records are.
        order: which of them comes when.
        collator: encodes and collates them.
        batch_size: rows of a full batch, or the tokens that it may hold.
        rank: this process.
        world_size: number of processes.
        keeps_going: whether a bad sample is left out and reported with its batch; else it raises.
        prefetch: batches of this process that it looks ahead; 0 fetches a shard when it is needed.
    """

    def __init__(
        self,
        records: Records,
        order: Order,
        collator: Collator[Any],
        *,
        batch_size: int | Budget,
        rank: int,
        world_size: int,
        keeps_going: bool,
        prefetch: int = 0,
    ) -> None:
        self.records = records
        self.order = order
        self.collator = collator
        self.batch_size = batch_size
        self.rank = rank
        self.steps: Steps = (
            CountedSteps(order, world_size, batch_size)
            if isinstance(batch_size, int)
            else BudgetedSteps(order, world_size, batch_size)
        )
        self.keeps_going = keeps_going
        self.prefetch = prefetch
        self._ahead: dict[int, Int64[np.ndarray, " N"]] = {}

    def __len__(self) -> int:
        """Steps of the first epoch."""
        return self.steps.count(0)

    def __getitem__(self, start: int) -> Any:
        """Return this rank's batch of the step that begins at ``start``, counted over all epochs.

        Raises:
            InputError: naming the record, if one is bad and ``keeps_going`` is off, or all are; or naming the
                address, if its shard cannot be fetched.
        """
        if self.prefetch and self.records.is_remote:
            self._look_ahead(start)
        epoch, place = divmod(start, len(self.order))
        bad: list[BadSample] = []
        found = [self._sample(int(index), bad) for index in self._indices(start)]
        samples = [sample for sample in found if sample]
        return self.collator.collate(
            samples or [self._any_sample(epoch, place)],
            real=[True] * len(samples) or [False],
            position=self.steps.end(start),
            bad=bad,
        )

    def _indices(self, start: int) -> Int64[np.ndarray, " N"]:
        """Numbers of this rank's records in the step that begins at ``start``."""
        first, stop = self.steps.share(start, self.rank)
        epoch = start // len(self.order)
        indices = self.order.records(epoch, np.arange(first, stop) - epoch * len(self.order))
        return indices[indices != FILL]

    def _look_ahead(self, start: int) -> None:
        """Have the shards of this process's next batches fetched, beginning with the one at ``start``."""
        worker = get_worker_info()
        stride = worker.num_workers if worker else 1
        known, self._ahead = self._ahead, {}
        with suppress(InputError):  # which a batch raises when it is made
            for ahead in islice(self._starts(start), 0, stride * self.prefetch + 1, stride):
                self._ahead[ahead] = known[ahead] if ahead in known else self._indices(ahead)
        self.records.prefetch(np.concatenate([*self._ahead.values(), np.arange(0)]))

    def _starts(self, start: int) -> Iterator[int]:
        """Where the steps from ``start`` on begin; an order that is not for training ends with its epoch."""
        last = None if isinstance(self.order, TrainingOrder) else self.steps.epoch_end(start)
        while start != last:
            yield start
            start = self.steps.end(start)

    def _sample(self, index: int, bad: list[BadSample]) -> Sample | None:
        """Return a record and what it is encoded to; a bad one is put on the list."""
        try:
            record = self.records.record(index)
            encoded = self.collator.encode(record)
            if not isinstance(self.batch_size, int):
                self.batch_size.check(index, encoded)
            return record, encoded
        except StoreInputError:  # it says nothing about the sample
            raise
        except InputError as error:
            if not self.keeps_going:
                raise
            bad.append(self._name(index, error))
            return None

    def _name(self, index: int, error: InputError) -> BadSample:
        try:
            shard, key = self.records.place(index)
        except InputError:  # the index of its shard is damaged, so nobody knows its key
            shard, key = "", ""
        return BadSample(key, shard, str(error))

    def _any_sample(self, epoch: int, place: int) -> Sample:
        """Return a good sample from before ``place``, or from behind it, to fill a batch that has none."""
        for step in range(1, min(MAX_TRIES, len(self.order)) + 1):
            index = self.order.records(epoch, np.array([(place - step) % len(self.order)]))[0]
            if index != FILL and (sample := self._sample(int(index), [])):
                return sample
        raise InputError(
            f"{min(MAX_TRIES, len(self.order)):,} samples in a row are bad; look at the list of bad samples, "
            "and mend the data"
        )


class StepSampler(DistributedSampler[Any]):
    """Where the steps of an epoch begin, from wherever training is.

    It is a ``DistributedSampler`` by type alone, so that Lightning leaves it in place: the ranks' shares are
    the datasets' business.

    Args:
        dataset: makes the batches.
        begin: tells, when an epoch is begun, at which place, and how many steps of it are done.
    """

    def __init__(self, dataset: BatchDataset, begin: Callable[[], tuple[int, int]]) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.batches = dataset
        self.begin = begin

    def __iter__(self) -> Iterator[int]:
        start, _ = self.begin()
        steps = self.batches.steps
        end = steps.epoch_end(start)
        while start < end:
            yield start
            start = steps.end(start)

    def __len__(self) -> int:
        """Steps of the epoch that is begun, those done before a resume included."""
        start, done = self.begin()
        has_ended = done > 0 and start % len(self.batches.order) == 0
        return done if has_ended else done + self.batches.steps.count(start)


class ResumingLoader(DataLoader[Any]):
    """A loader whose sampler goes on where training stopped.

    Lightning takes loaders with a state for resumable ones. What there is to know is in the datamodule's
    state, which is the same for all ranks.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing of its own."""
