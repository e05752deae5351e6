# SPDX-License-Identifier: Apache-2.0
"""How far a training step reaches in the order: a number of samples, or as many as a budget of tokens holds.

Batches by tokens are cut greedily: each takes the samples that come next in the order as long as they fit,
and a step of n ranks takes the next n batches. So the batches follow from the order and the budget alone,
from any place at which one of them ends; the number of ranks decides only how many of them make a step. A
run that goes on with other ranks sees the same batches, and its state stays one number, the samples consumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ixc_lightning.datamodules.order import FILL, Order, Places
from ixc_lightning.datamodules.processing import Encoded

BLOCK = 4096
"""Places whose costs are looked up at a time."""
GUESS = 64
"""Samples that a batch is first thought to hold at most; doubled as long as all of them fit."""
KEPT_STEPS = 1024
"""Steps that a process remembers, for those who look ahead."""


@runtime_checkable
class Budget(Protocol):
    """How much a batch may hold, and how much each record takes of it."""

    tokens: int

    def costs(self, indices: Places) -> Places:
        """Tokens of each record, at most ``tokens``; 0 for one that cannot be used."""

    def held(self, costs: Places) -> Places:
        """Tokens that the first sample, the first two, … hold together; never falling."""

    def check(self, index: int, encoded: Encoded) -> None:
        """Raise if a record, now that it is encoded, does not have the tokens that it was to have."""


class Steps(ABC):
    """Which places of an order a step takes, and which of them each rank. Places count over all epochs.

    Args:
        order: the order; a step ends where its epoch ends.
        world_size: number of ranks.
    """

    def __init__(self, order: Order, world_size: int) -> None:
        self.order = order
        self.world_size = world_size

    @abstractmethod
    def share(self, start: int, rank: int) -> tuple[int, int]:
        """First place of a rank in the step that begins at ``start``, and the one behind its last."""

    @abstractmethod
    def end(self, start: int) -> int:
        """Place behind the step that begins at ``start``."""

    @abstractmethod
    def count(self, start: int) -> int:
        """Steps from ``start`` to the end of its epoch."""

    def epoch_end(self, start: int) -> int:
        """Place behind the epoch that ``start`` lies in."""
        return (start // len(self.order) + 1) * len(self.order)


class CountedSteps(Steps):
    """Steps of so many samples for each rank.

    Args:
        order: the order.
        world_size: number of ranks.
        batch_size: samples of a rank.
    """

    def __init__(self, order: Order, world_size: int, batch_size: int) -> None:
        super().__init__(order, world_size)
        self.batch_size = batch_size

    def share(self, start: int, rank: int) -> tuple[int, int]:
        """The next ``batch_size`` places behind those of the rank before."""
        last, first = self.epoch_end(start), start + rank * self.batch_size
        return min(first, last), min(first + self.batch_size, last)

    def end(self, start: int) -> int:
        """Place behind the step."""
        return min(start + self.world_size * self.batch_size, self.epoch_end(start))

    def count(self, start: int) -> int:
        """Steps to the end of the epoch."""
        return -((start - self.epoch_end(start)) // (self.world_size * self.batch_size))


class BudgetedSteps(Steps):
    """Steps of one batch for each rank, each of as many samples as its budget holds.

    Behind the last batch of an epoch the ranks that are left get an empty share.

    Args:
        order: the order.
        world_size: number of ranks.
        budget: of the batch of one rank.
    """

    def __init__(self, order: Order, world_size: int, budget: Budget) -> None:
        super().__init__(order, world_size)
        self.budget = budget
        self._remember()

    def share(self, start: int, rank: int) -> tuple[int, int]:
        """The samples that fit behind those of the rank before."""
        ends = (start, *self._ends(start))
        return ends[rank], ends[rank + 1]

    def end(self, start: int) -> int:
        """Place behind the step."""
        return self._ends(start)[-1]

    def count(self, start: int) -> int:
        """Steps to the end of the epoch; looks at the lengths of all samples up to there."""
        return self._count(start)

    def _cut(self, start: int) -> tuple[int, ...]:
        """Where the batch of each rank ends."""
        end, ends = self.epoch_end(start), []
        for _ in range(self.world_size):
            start = self._fill(start) if start < end else end
            ends.append(start)
        return tuple(ends)

    def _count_steps(self, start: int) -> int:
        batches, end = 0, self.epoch_end(start)
        while start < end:
            start = self._fill(start)
            batches += 1
        return -(-batches // self.world_size)

    def _fill(self, start: int) -> int:
        """Place behind the batch that begins at ``start``."""
        rest, guess = self.epoch_end(start) - start, GUESS
        while True:
            costs = self._costs(start, min(guess, rest))
            fits = int(np.searchsorted(self.budget.held(costs), self.budget.tokens, side="right"))
            if fits < len(costs) or fits == rest:
                return start + fits
            guess *= 2

    def _costs(self, start: int, number: int) -> Int64[np.ndarray, " N"]:
        """Tokens of that many samples from ``start`` on, inside its epoch."""
        epoch, place = divmod(start, len(self.order))
        first, last = place // BLOCK, (place + number - 1) // BLOCK
        blocks = [self._block(epoch, block) for block in range(first, last + 1)]
        costs = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return costs[place - first * BLOCK : place - first * BLOCK + number]

    def _look_up(self, epoch: int, block: int) -> Int64[np.ndarray, " N"]:
        places = np.arange(block * BLOCK, min((block + 1) * BLOCK, len(self.order)))
        records = self.order.records(epoch, places)
        costs = np.zeros(len(places), dtype=np.int64)
        costs[records != FILL] = self.budget.costs(records[records != FILL])
        return costs

    def _remember(self) -> None:
        self._ends = lru_cache(KEPT_STEPS)(self._cut)
        self._count = lru_cache(4)(self._count_steps)
        self._block = lru_cache(2)(self._look_up)

    def __getstate__(self) -> dict[str, object]:
        kept = ("order", "world_size", "budget")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._remember()
