# SPDX-License-Identifier: Apache-2.0
"""Which sample comes when: the global order of an epoch, as a function.

The order follows from (seed, epoch, mixture) alone. It knows no ranks and no workers: a rank takes its slice
of every step, and a run that resumes goes on at a number, the samples consumed so far. What is kept in memory
does not grow with the samples, and with the shards by two numbers for every 4,096 of them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from ixc_lightning.datamodules.permutation import key_of, mix, permute

Places = Int64[np.ndarray, " N"]
FILL = -1
"""In place of a record's number: nothing comes here."""
BLOCK = 4096
"""Shards that are shuffled among each other; more come block by block."""


class Order(ABC):
    """The records of every epoch, by their places in it."""

    @abstractmethod
    def __len__(self) -> int:
        """Places of an epoch, the same in every epoch."""

    @abstractmethod
    def records(self, epoch: int, places: Places) -> Places:
        """Numbers of the records at ``places`` of an epoch; ``FILL`` where there is none."""


class SequentialOrder(Order):
    """Every record once, in the order of the shards.

    Args:
        size: number of records.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def records(self, epoch: int, places: Places) -> Places:
        """The places themselves, and ``FILL`` behind the last one."""
        return np.where(places < self.size, places, FILL)


class ShuffledSource:
    """One set of shards, passed through again and again, shuffled anew in each pass.

    The shards of a pass are shuffled, and the samples of ``window`` neighbouring shards among each other. So
    what is read at a time lies in few shards, as disks and remote stores like it.

    More than ``BLOCK`` shards are shuffled block by block, so that a pass over a million shards begins as
    quickly as one over a thousand. The shards of a block lie evenly apart in the whole set, and blocks come
    in another order in each pass.

    Args:
        counts: samples of each shard; not copied.
        window: shards whose samples are mixed; as many as there are mixes everything.
        key: what the shuffles depend on besides the pass.
    """

    def __init__(self, counts: Sequence[int] | Places, *, window: int, key: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.window = window
        self.key = key
        self.num_blocks = -(-len(self.counts) // max(BLOCK, window))
        strides = self.counts[: len(self.counts) // self.num_blocks * self.num_blocks]
        self.block_sizes = strides.reshape(-1, self.num_blocks).sum(axis=0)
        self.block_sizes[: len(self.counts) - len(strides)] += self.counts[len(strides) :]
        self.size = int(self.block_sizes.sum())
        totals = np.add.reduceat(self.counts, np.arange(0, len(self.counts), BLOCK))
        self._before = np.cumsum(totals) - totals
        self._remember()

    def records(self, serials: Places) -> Places:
        """Numbers of the records that come as number ``serials`` when passes follow each other."""
        found = np.empty_like(serials)
        for number, chosen in _by_group(serials // self.size):
            blocks, ends = self._blocks(number)
            places = serials[chosen] % self.size
            in_pass = np.empty_like(places)
            for turn, inside in _by_group(np.searchsorted(ends, places, side="right")):
                start = int(ends[turn - 1]) if turn else 0
                in_pass[inside] = self._in_block(number, turn, int(blocks[turn]), places[inside] - start)
            found[chosen] = in_pass
        return found

    def _in_block(self, number: int, turn: int, block: int, places: Places) -> Places:
        """Numbers of the records at places of the block whose turn it is."""
        shards, ends, window_ends = self._layout(number, block)
        mixed = np.empty_like(places)
        for window, chosen in _by_group(np.searchsorted(window_ends, places, side="right")):
            start = int(window_ends[window - 1]) if window else 0
            size = int(window_ends[window]) - start
            key = key_of(self.key, number, turn * BLOCK + window)
            mixed[chosen] = start + permute(places[chosen] - start, size, key)
        slots = np.searchsorted(ends, mixed, side="right")
        return self._first(shards[slots]) + mixed - (ends[slots] - self.counts[shards[slots]])

    def _first(self, shards: Places) -> Places:
        """Number of the first sample of each shard."""
        found = np.empty_like(shards)
        for part, chosen in _by_group(shards // BLOCK):
            counts = self.counts[part * BLOCK : (part + 1) * BLOCK]
            found[chosen] = self._before[part] + (np.cumsum(counts) - counts)[shards[chosen] - part * BLOCK]
        return found

    def _order_blocks(self, number: int) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """The blocks in the order of a pass, and where each ends."""
        blocks = _shuffled(np.arange(self.num_blocks), key_of(self.key, number, "blocks"))
        return blocks, np.cumsum(self.block_sizes[blocks])

    def _lay_out(
        self, number: int, block: int
    ) -> tuple[Int64[np.ndarray, " S"], Int64[np.ndarray, " S"], Int64[np.ndarray, " W"]]:
        """The shards of a block in the order of a pass, where each ends, and where each window ends."""
        shards = _shuffled(np.arange(block, len(self.counts), self.num_blocks), key_of(self.key, number))
        ends = np.cumsum(self.counts[shards])
        return shards, ends, np.append(ends[self.window - 1 : -1 : self.window], ends[-1])

    def _remember(self) -> None:
        self._blocks = lru_cache(maxsize=2)(self._order_blocks)
        self._layout = lru_cache(maxsize=4)(self._lay_out)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_blocks", "_layout")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._remember()


class Part(NamedTuple):
    """A source in a mixture.

    Attributes:
        counts: samples of each of its shards.
        weight: passes over the source in one epoch.
    """

    counts: Sequence[int] | Places
    weight: float = 1.0


class TrainingOrder(Order):
    """Sources mixed evenly over the epoch, each shuffled, and grouped by length if asked for.

    A source of n samples and weight w gives ``round(w · n)`` samples to every epoch; where that is no whole
    pass, the next epoch goes on where this one stopped, so that every sample comes equally often. Sources
    take turns as evenly as whole numbers allow, sample by sample or unit by unit.

    Grouping sorts the samples of a pool of neighbouring units by cost, cuts them into units, and shuffles the
    units: a batch holds samples of like length, while what an epoch holds stays the same. Units are cut by
    number, or into parts of like cost, so that short samples come in larger units than long ones.

    Args:
        parts: the sources, in the order in which their records are numbered.
        seed: fixes the order.
        window: shards of a source whose samples are mixed.
        mix: what the sources take turns with: ``samples``, or ``units`` that come from one source each. A
            source's last unit of an epoch is then filled up with ``FILL``.
        unit: samples of a unit; the batch of one rank, usually.
        pool: units that are grouped by length together; 0 does not group.
        costs: costs of the records of given numbers, such as their lengths; needed to group.
        cut: units of a pool are of as many samples, or of like ``costs``, which must then add up.

    Attributes:
        fingerprint: the same for the same order, so that a place in it can be told from one in another.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        seed: int,
        window: int = 32,
        mix: Literal["samples", "units"] = "samples",
        unit: int = 1,
        pool: int = 0,
        costs: Callable[[Places], Int64[np.ndarray, " N"]] | None = None,
        cut: Literal["samples", "costs"] = "samples",
    ) -> None:
        self.sources = [
            ShuffledSource(part.counts, window=window, key=key_of(seed, number))
            for number, part in enumerate(parts)
        ]
        sizes = np.array([source.size for source in self.sources])
        self.first = np.cumsum(sizes) - sizes
        self.shares = [
            max(1, round(part.weight * source.size)) for part, source in zip(parts, self.sources, strict=True)
        ]
        self.seed, self.unit, self.pool, self.costs, self.cut = seed, unit, pool, costs, cut
        self.turn = unit if mix == "units" else 1
        units = unit if pool or mix == "units" else 1
        layout = hashlib.sha256()
        for source in self.sources:
            layout.update(np.ascontiguousarray(source.counts).data)
        counted = layout.hexdigest()
        told: list[int | str] = [*self.shares, counted]
        told += [cut] if pool and cut == "costs" else []
        told += [BLOCK] if any(source.num_blocks > 1 for source in self.sources) else []
        self.fingerprint = str(key_of(seed, window, mix, units, pool, *told))
        self._pool = lru_cache(maxsize=2)(self._sort_pool)

    def __len__(self) -> int:
        return sum(self._turns()) * self.turn

    def records(self, epoch: int, places: Places) -> Places:
        """Numbers of the records at ``places``, grouped by length where that is asked for."""
        inside = places < len(self)
        found = np.full_like(places, FILL)
        if self.pool:
            found[inside] = self._grouped(epoch, places[inside])
        else:
            found[inside], _ = self._mixed(epoch, places[inside])
        return found

    def _turns(self) -> list[int]:
        """Turns of each source in an epoch."""
        return [-(-share // self.turn) for share in self.shares]

    def _mixed(self, epoch: int, places: Places) -> tuple[Places, Places]:
        """Numbers of the records before they are grouped, and the source whose turn it is."""
        turns, offsets = np.divmod(places, self.turn)
        found, source = np.full_like(places, FILL), np.empty_like(places)
        rest = np.arange(len(places))
        total = sum(self._turns())
        for number, count in enumerate(self._turns()):
            before, behind = _dealt(turns, count, total), _dealt(turns + 1, count, total)
            takes = behind > before
            serials = before[takes] * self.turn + offsets[rest[takes]]
            found[rest[takes]] = self._of_source(number, epoch, serials)
            source[rest[takes]] = number
            turns, rest, total = (turns - before)[~takes], rest[~takes], total - count
        return found, source

    def _of_source(self, number: int, epoch: int, serials: Places) -> Places:
        share = self.shares[number]
        found = np.full_like(serials, FILL)
        real = serials < share
        if real.any():
            found[real] = self.first[number] + self.sources[number].records(epoch * share + serials[real])
        return found

    def _grouped(self, epoch: int, places: Places) -> Places:
        size = self.unit * self.pool
        found = np.empty_like(places)
        for pool in np.unique(places // size):
            chosen = places // size == pool
            found[chosen] = self._pool(epoch, int(pool))[places[chosen] - pool * size]
        return found

    def _sort_pool(self, epoch: int, pool: int) -> Places:
        """The records of a pool in their new order; equal costs stay in the order they came in."""
        assert self.costs is not None
        size = self.unit * self.pool
        records, source = self._mixed(epoch, np.arange(pool * size, min((pool + 1) * size, len(self))))
        costs = np.full_like(records, -1)
        costs[records != FILL] = self.costs(records[records != FILL])
        stays_pure = self.turn > 1
        by_cost = np.lexsort((costs, source * stays_pure))
        units, whole = self._cut_pool(np.maximum(costs[by_cost], 0))
        turns = np.append(
            np.argsort(permute(np.arange(whole), whole, key_of(self.seed, "units", epoch, pool))), whole
        )
        return records[by_cost][np.argsort(turns[units], kind="stable")]

    def _cut_pool(self, costs: Places) -> tuple[Places, int]:
        """The unit of each sample of a sorted pool, and how many units change places; a rest stays behind."""
        whole = len(costs) // self.unit
        if self.cut == "samples" or not costs.any():
            return np.arange(len(costs)) // self.unit, whole
        whole = max(whole, 1)
        return (np.cumsum(costs) - costs) * whole // costs.sum(), whole

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pool = lru_cache(maxsize=2)(self._sort_pool)


def _by_group(groups: Places) -> Iterator[tuple[int, Bool[np.ndarray, " N"]]]:
    """Each number that occurs, and where."""
    for group in np.unique(groups).tolist():
        yield group, groups == group


def _shuffled(numbers: Places, key: int) -> Places:
    """Different numbers in an order that the key gives; to the mixer no two of them are the same."""
    return numbers[np.argsort(mix(numbers.astype(np.uint64) ^ np.uint64(key)))]


def _dealt(turns: Places, count: int, total: int) -> Places:
    """How many of the first ``turns`` of ``total`` go to the one who is dealt ``count``, spread evenly."""
    return (turns * count + total // 2) // total
