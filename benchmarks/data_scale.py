# SPDX-License-Identifier: Apache-2.0
"""What 10⁹ samples in 10⁶ shards on 1,024 ranks cost one rank: start-up, memory, first batch, resume, a step.

``python benchmarks/data_scale.py`` takes a minute or two and prints a table for the docs; ``--small`` takes
seconds. No tar is written: the manifest of as many shards, with the entries that ``write_shards`` writes, is
made in a temporary folder, read as training reads it, and its counts are given to the order of training.

Three sizes are compared, each in a process of its own: 10⁶ samples in 10³ shards; 1,000 times the samples in
as many shards; and 1,000 times the samples in 1,000 times the shards. The first ratio shows what depends on
the samples, the second what depends on the shards. Times are CPU times, the quickest of several.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ixc_lightning.datamodules.order import FILL, Part, TrainingOrder
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import MANIFEST, MANIFEST_VERSION, Manifest

RANKS = 1024
BATCH = 8
STEPS = 200
REPEATS = 5
SEED = 0


class Size(NamedTuple):
    """A data set."""

    samples: int
    shards: int


SIZES = (Size(10**6, 10**3), Size(10**9, 10**3), Size(10**9, 10**6))
SMALL = (Size(10**4, 10**2), Size(10**7, 10**2), Size(10**7, 10**4))


class Stage(NamedTuple):
    """A row of the table."""

    name: str
    unit: str
    value: Callable[[dict[str, float]], float]


STAGES = (
    Stage("manifest on disk", "MB", lambda cost: cost["manifest_mb"]),
    Stage("reading the manifest", "ms", lambda cost: cost["manifest_s"] * 1e3),
    Stage("memory while it is read", "MB", lambda cost: cost["manifest_peak_mb"]),
    Stage("memory of the order", "MB", lambda cost: cost["order_mb"]),
    Stage("order and first batch", "ms", lambda cost: cost["first_s"] * 1e3),
    Stage("the same, going on in the middle", "ms", lambda cost: cost["resume_s"] * 1e3),
    Stage("the same, in the middle of epoch 1,000", "ms", lambda cost: cost["late_s"] * 1e3),
    Stage("any further batch", "ms", lambda cost: cost["step_s"] * 1e3),
)


def write_manifest(folder: Path, size: Size) -> None:
    """Write the manifest of shards that are not there."""
    each = size.samples // size.shards
    shards = [
        {
            "file": f"shard-{number:06d}.tar",
            "samples": each,
            "bytes": each * 100_000,
            "sha256": f"{number:064x}",
        }
        for number in range(size.shards)
    ]
    kinds = {"image": size.samples}
    manifest = {
        "kind": Kind.PREFERENCE.value,
        "samples": size.samples,
        "modalities": kinds,
        "domains": kinds,
        "shards": shards,
        "version": MANIFEST_VERSION,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def study(folder: str, size: Size) -> dict[str, float]:
    """Seconds and megabytes of each stage, in this process."""
    cost = {"manifest_mb": (Path(folder) / MANIFEST).stat().st_size / 1e6}
    cost["manifest_s"], manifest = timed(lambda: Manifest.load(Path(folder)), repeats=2)
    cost["manifest_peak_mb"] = peak_mb(lambda: Manifest.load(Path(folder)))
    counts = np.array([shard["samples"] for shard in manifest.shards], dtype=np.int64)
    middle = size.samples // 2
    cost["first_s"], _ = timed(lambda: batch(fresh(counts), 0, 0, rank=0))
    cost["resume_s"], _ = timed(lambda: batch(fresh(counts), 0, middle, rank=0))
    cost["late_s"], _ = timed(lambda: batch(fresh(counts), 999, middle, rank=0))
    order = fresh(counts)
    check(order, size)
    cost["order_mb"] = order_bytes(order) / 1e6
    starts = range(middle, middle + STEPS * RANKS * BATCH, RANKS * BATCH)
    seconds, _ = timed(lambda: [batch(order, 0, start % size.samples, rank=RANKS - 1) for start in starts])
    cost["step_s"] = seconds / STEPS
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


def order_bytes(order: TrainingOrder) -> int:
    """Bytes of all arrays that an order in use holds: those of its sources, and of the pass it is in."""
    arrays = [order.first]
    for source in order.sources:
        arrays += [source.counts, source.first, *source._layout(0)]
    return sum(array.nbytes for array in arrays)


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
    """The costs, and how many times those of the first size they are, as Markdown."""
    names = [f"{size.samples:,} in {size.shards:,} shards" for size in sizes]
    columns = [f"{RANKS:,} ranks, samples:", *names, "ratio of the second", "of the third"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for stage in STAGES:
        values = [stage.value(cost) for cost in costs]
        cells = [f"{value:.3g} {stage.unit}" for value in values]
        cells += [f"{value / values[0]:.3g}" for value in values[1:]]
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
        with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
            write_manifest(Path(folder), size)
            costs.append(pool.apply(study, (folder, size)))
    print(table(sizes, costs))


if __name__ == "__main__":
    main()
