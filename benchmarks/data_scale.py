# SPDX-License-Identifier: Apache-2.0
"""What 10⁹ samples in 10⁶ shards on 1,024 ranks cost one rank: start-up, memory, first batch, resume, a step.

``python benchmarks/data_scale.py`` takes some minutes and prints a table for the docs; ``--small`` takes
seconds. No tar is written: the manifest of as many shards, as ``write_shards`` writes it, is made in a
temporary folder, which is opened as training opens it, and its counts are given to the order of training.
Folders that are small enough to be listed get empty files under the names of their shards.

Each size is studied in a process of its own. The columns differ first in the samples alone, then in the
shards alone. Times are CPU times, the quickest of several; memory is what Python and NumPy allocate at most,
without the pages of a mapped file, which all processes of a machine share. The last row is what earlier
versions had to read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ixc_lightning.datamodules.manifest import MANIFEST, TABLE, Manifest
from ixc_lightning.datamodules.order import FILL, Part, TrainingOrder
from ixc_lightning.datamodules.patterns import MAX_LISTED
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_table import ShardRow, ShardTable
from ixc_lightning.datamodules.shards import ShardDataset

RANKS = 1024
BATCH = 8
STEPS = 200
REPEATS = 5
SEED = 0


class Size(NamedTuple):
    """A data set."""

    samples: int
    shards: int


SIZES = (
    Size(10**6, 10),
    Size(10**9, 10),
    Size(10**9, 10**3),
    Size(10**9, 10**4),
    Size(10**9, 10**5),
    Size(10**9, 10**6),
)
SMALL = (Size(10**4, 10), Size(10**7, 10), Size(10**7, 10**3), Size(10**7, 10**4))


class Stage(NamedTuple):
    """A row of the table."""

    name: str
    unit: str
    value: Callable[[dict[str, float]], float]


STAGES = (
    Stage("manifest on disk", "MB", lambda cost: cost["manifest_mb"]),
    Stage("opening the folder", "ms", lambda cost: cost["open_s"] * 1e3),
    Stage("memory while it is opened", "MB", lambda cost: cost["open_mb"]),
    Stage("what a spawned worker is sent", "MB", lambda cost: cost["pickle_mb"]),
    Stage("memory of the order", "MB", lambda cost: cost["order_mb"]),
    Stage("order and first batch", "ms", lambda cost: cost["first_s"] * 1e3),
    Stage("the same, going on in the middle", "ms", lambda cost: cost["resume_s"] * 1e3),
    Stage("the same, in the middle of epoch 1,000", "ms", lambda cost: cost["late_s"] * 1e3),
    Stage("any further batch", "ms", lambda cost: cost["step_s"] * 1e3),
    Stage("reading a manifest of version 1", "ms", lambda cost: cost["old_s"] * 1e3),
)


def write_folder(folder: Path, size: Size) -> None:
    """Write the manifest of shards that are not there."""
    kinds = {"image": size.samples}
    Manifest(Kind.PREFERENCE.value, size.samples, kinds, kinds, ShardTable.of(rows_of(size))).save(folder)
    for number in range(size.shards if size.shards <= MAX_LISTED else 0):
        (folder / f"shard-{number:06d}.tar").touch()


def write_version_1(folder: Path, size: Size) -> None:
    """Write the manifest of the same shards as earlier versions wrote it."""
    kinds = {"image": size.samples}
    fields = {"kind": Kind.PREFERENCE.value, "samples": size.samples, "modalities": kinds, "domains": kinds}
    fields |= {"shards": [row._asdict() for row in rows_of(size)], "version": 1}
    (folder / MANIFEST).write_text(json.dumps(fields, indent=1, sort_keys=True))


def rows_of(size: Size) -> list[ShardRow]:
    """What is said of the shards."""
    each = size.samples // size.shards
    return [
        ShardRow(f"shard-{number:06d}.tar", each, each * 100_000, f"{number + 1:064x}")
        for number in range(size.shards)
    ]


def study(folder: str, old_folder: str, size: Size) -> dict[str, float]:
    """Seconds and megabytes of each stage, in this process."""

    def opened() -> ShardDataset:
        return ShardDataset(folder, kind=Kind.PREFERENCE)

    cost = {"manifest_mb": sum(path.stat().st_size for path in Path(folder).glob(TABLE.format("*"))) / 1e6}
    cost["open_s"], dataset = timed(opened)
    cost["open_mb"] = peak_mb(opened)
    cost["pickle_mb"] = len(pickle.dumps(dataset)) / 1e6
    counts = dataset.counts
    middle = size.samples // 2
    cost["first_s"], _ = timed(lambda: batch(fresh(counts), 0, 0, rank=0))
    cost["resume_s"], _ = timed(lambda: batch(fresh(counts), 0, middle, rank=0))
    cost["late_s"], _ = timed(lambda: batch(fresh(counts), 999, middle, rank=0))
    cost["order_mb"] = peak_mb(lambda: batch(fresh(counts), 0, 0, rank=0))
    order = fresh(counts)
    check(order, size)
    starts = range(middle, middle + STEPS * RANKS * BATCH, RANKS * BATCH)
    seconds, _ = timed(lambda: [batch(order, 0, start % size.samples, rank=RANKS - 1) for start in starts])
    cost["step_s"] = seconds / STEPS
    cost["old_s"], old = timed(lambda: Manifest.load(Path(old_folder)), repeats=1)
    assert np.array_equal(old.shards.samples, counts), "the versions differ"
    return cost


def fresh(counts: np.ndarray) -> TrainingOrder:
    """An order that has computed nothing yet."""
    return TrainingOrder([Part(counts)], seed=SEED, unit=BATCH)


def batch(order: TrainingOrder, epoch: int, start: int, *, rank: int) -> np.ndarray:
    """Numbers of the records of a rank's batch in the step that begins at a place."""
    return order.records(epoch, start + rank * BATCH + np.arange(BATCH))


def check(order: TrainingOrder, size: Size) -> None:
    """The ranks' batches of a step at the beginning and in the middle are real, and no sample comes twice."""
    step = min(RANKS * BATCH, size.samples // 2)
    places = np.concatenate([np.arange(step), size.samples // 2 + np.arange(step)])
    found = order.records(0, places)
    assert FILL not in found, "the order lacks a sample"
    assert len(np.unique(found)) == len(places), "the order repeats a sample"


def timed(work: Callable[[], Any], *, repeats: int = REPEATS) -> tuple[float, Any]:
    """CPU seconds of the quickest repeat, and what the last one returned."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def peak_mb(work: Callable[[], Any]) -> float:
    """Most memory that Python's objects took at a time while this ran; asking for it takes time."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def table(sizes: tuple[Size, ...], costs: list[dict[str, float]]) -> str:
    """The costs as Markdown, and how many times those of the first size the times are."""
    names = [f"{size.samples:,} in {size.shards:,} shards" for size in sizes]
    columns = [f"{RANKS:,} ranks, samples:", *names]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for stage in STAGES:
        values = [stage.value(cost) for cost in costs]
        ratios = [f" ({value / values[0]:.2g})" if stage.unit == "ms" else "" for value in values]
        cells = [f"{value:.3g} {stage.unit}{ratio}" for value, ratio in zip(values, ratios, strict=True)]
        rows.append(f"| {stage.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Study the sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help="sizes a hundred times smaller, to see that it runs"
    )
    sizes = SMALL if parser.parse_args().small else SIZES
    costs = []
    context = multiprocessing.get_context("spawn")
    for size in sizes:
        with (
            tempfile.TemporaryDirectory() as folder,
            tempfile.TemporaryDirectory() as old,
            context.Pool(1) as pool,
        ):
            write_folder(Path(folder), size)
            write_version_1(Path(old), size)
            costs.append(pool.apply(study, (folder, old, size)))
    print(table(sizes, costs))


if __name__ == "__main__":
    main()
