# SPDX-License-Identifier: Apache-2.0
"""The command that compares two models on the items of a benchmark that both were scored on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ixc_lightning import metrics
from ixc_lightning.metrics.benchmark import Benchmark, ScoredItem, TiePolicy
from ixc_lightning.metrics.paired import Difference, match_items, paired_differences
from ixc_lightning.metrics.result_files import read_results
from ixc_lightning.types import InputError

SHOWN = 10
"""Unmatched items of a file that are named."""


def compare(a: str, b: str, *, ties: TiePolicy = "wrong", resamples: int = 2000, seed: int = 0) -> None:
    """Compare two files of scores of one benchmark, item by item, by a paired bootstrap.

    Items are told by their texts, so that the two releases of a benchmark may differ in order. The figures of
    both models are computed over the items that both files hold, on the same resamples.

    Args:
        a: file that `test` with a recipe of recipes/evaluate wrote, JSON Lines or Parquet.
        b: the same for the other model.
        ties: what two equal scores count where the benchmark leaves it open.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Raises:
        InputError: a file cannot be read, they are of different benchmarks, or have no item in common.
    """
    if resamples < 1:
        raise InputError(f"--resamples is {resamples}, but must be at least 1")
    first, second = read_results(a), read_results(b)
    if first.benchmark != second.benchmark:
        raise InputError(
            f"{a} holds {first.benchmark} and {b} holds {second.benchmark}: give two files of one benchmark"
        )
    benchmark = benchmark_named(first.benchmark, a)(ties)
    matched = match_items(first.items, second.items)
    if not matched.pairs:
        raise InputError(f"{a} and {b} have no item in common; were both made from the same benchmark?")
    console = Console(highlight=False)
    console.print(f"{benchmark.title}, {len(matched.pairs):,} items that both files hold", soft_wrap=True)
    for path, rest in ((a, matched.only_first), (b, matched.only_second)):
        if rest:
            console.print(f"only in {escape(path)}: {_named(rest)}", soft_wrap=True)
    console.print(f"A: {escape(first.model)}\nB: {escape(second.model)}", soft_wrap=True)
    try:
        differences = paired_differences(benchmark, matched.pairs, resamples=resamples, seed=seed)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{a}, {b}: the scores are not those of {benchmark.title} ({error})") from error
    console.print(_table(differences))
    console.print(_both(benchmark, matched.pairs), soft_wrap=True)


def benchmark_named(name: str, path: str) -> type[Benchmark]:
    """The benchmark that a result file names.

    Raises:
        InputError: naming the file, if there is none of this name.
    """
    known = {
        value.name: value
        for value in vars(metrics).values()
        if isinstance(value, type) and issubclass(value, Benchmark) and value is not Benchmark
    }
    if name not in known:
        raise InputError(f"{path}, benchmark: {name!r} is none of {', '.join(sorted(known))}")
    return known[name]


def _named(items: Sequence[ScoredItem]) -> str:
    names = ", ".join(f"{item.id} (row {item.row})" for item in items[:SHOWN])
    more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return escape(f"{len(items):,} items, {names}{more}")


def _table(differences: dict[str, Difference]) -> Table:
    columns = ("A", "B", "B - A", "95 % interval", "p")
    table = Table("figure", *(Column(name, justify="right", no_wrap=True) for name in columns), box=SIMPLE)
    for name, one in differences.items():
        if one.difference != one.difference:  # a category without common items
            continue
        table.add_row(
            name,
            f"{100 * one.first:.1f}",
            f"{100 * one.second:.1f}",
            f"{100 * one.difference:+.1f}",
            f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]".replace("[", r"\["),
            f"{one.p:.3f}",
        )
    return table


def _both(benchmark: Benchmark, pairs: Sequence[tuple[ScoredItem, ScoredItem]]) -> str:
    first = benchmark.results([pair[0] for pair in pairs])
    second = benchmark.results([pair[1] for pair in pairs])
    better, worse = int((second > first).sum()), int((second < first).sum())
    return f"B is better on {better:,} items, A on {worse:,}, both alike on {len(pairs) - better - worse:,}."
