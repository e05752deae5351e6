# SPDX-License-Identifier: Apache-2.0
"""Contenders that take turns in one process, and what is told of them: ratios, and one line of JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "ixc_lightning")


class Spent(NamedTuple):
    """Seconds of one run, by the clock on the wall and by that of this process's CPU time."""

    wall: float
    cpu: float


def take_turns(ways: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[Spent]]:
    """What each way spends in each round, after one that warms up; the order turns round by round."""
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            wall, cpu = perf_counter(), process_time()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                spent[name].append(Spent(perf_counter() - wall, process_time() - cpu))
    return spent


def compare(
    spent: Mapping[str, Sequence[Spent]], *, a: str, b: str, ceiling: float | None = None
) -> dict[str, Any]:
    """How many times as fast as ``b`` the way ``a`` is: the median over the rounds, and their range.

    ``cpu_ratio`` is that of the CPU time, which other programs on the machine disturb less.
    """
    wall, cpu = (
        [getattr(two, c) / getattr(one, c) for one, two in zip(spent[a], spent[b], strict=True)]
        for c in Spent._fields
    )
    return {
        "ratio": round(median(wall), 3),
        "spread": [round(min(wall), 3), round(max(wall), 3)],
        "cpu_ratio": round(median(cpu), 3),
        "ceiling": None if ceiling is None else round(ceiling, 3),
        "a": {"way": a, "seconds": round(median(one.wall for one in spent[a]), 4)},
        "b": {"way": b, "seconds": round(median(one.wall for one in spent[b]), 4)},
    }


def describe(result: Mapping[str, Any]) -> str:
    """A result of ``compare`` for a person."""
    least, most = result["spread"]
    return (
        f"{result['ratio']:.2f} ({least:.2f} to {most:.2f}), CPU time {result['cpu_ratio']:.2f}, "
        f"ceiling {result['ceiling']:.2f}"
    )


def tell(name: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Print the line of JSON that a benchmark ends with, and keep it under ``results``."""
    versions = {package: version(package) for package in PACKAGES}
    line = json.dumps({"name": name, "results": results, "machine": machine(), "versions": versions})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(line + "\n")
    print(line)


def machine() -> str:
    """The processor that computes, and how many threads of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpu.read_text()) if cpu.exists() else None
    threads = torch.get_num_threads()
    return f"{found[1] if found else platform.processor()}, {threads} thread{'s' * (threads > 1)}"
