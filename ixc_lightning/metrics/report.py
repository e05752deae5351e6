# SPDX-License-Identifier: Apache-2.0
"""The figures of a benchmark with their uncertainty, and a page of tables for a model card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.bootstrap import interval, resample_weights
from ixc_lightning.metrics.benchmark import Benchmark, ScoredItem

OFFICIAL, PAPER = "official", "paper"
LEVEL = 0.95


class Figure(NamedTuple):
    """A figure and its interval on resamples, as shares."""

    value: float
    low: float
    high: float


class GroupRow(NamedTuple):
    """A category: its items, their mean result, and how many hold a tie or a score that is no number."""

    name: str
    items: int
    result: float
    ties: int
    broken: int


class Report(NamedTuple):
    """Everything that is told about one model on one benchmark.

    Attributes:
        benchmark: what was measured.
        model: name of the model.
        figures: by name, with its convention first.
        groups: in the order of their names.
        left_out: items that could not be scored.
        resamples: for the intervals.
        seed: of the resamples.
    """

    benchmark: Benchmark
    model: str
    figures: dict[str, Figure]
    groups: list[GroupRow]
    left_out: int
    resamples: int
    seed: int

    @property
    def num_items(self) -> int:
        """Items with scores."""
        return sum(group.items for group in self.groups)


def weights_of(
    benchmark: Benchmark, items: Sequence[ScoredItem], *, resamples: int, seed: int
) -> Float[Tensor, "S I"]:
    """Ones in the first row, for the figures themselves; behind it the weights of each resample."""
    stratum = _numbers([item.group for item in items])
    unit = _numbers([benchmark.unit(item) for item in items])
    drawn = resample_weights(stratum, unit, resamples=resamples, seed=seed)
    return torch.cat([torch.ones(1, len(items), dtype=drawn.dtype), drawn])


def make_report(
    benchmark: Benchmark,
    items: Sequence[ScoredItem],
    *,
    model: str,
    left_out: int = 0,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Compute all figures of a benchmark, with 95 % intervals from resampled items.

    Args:
        benchmark: the figures to compute.
        items: with their scores; at least one.
        model: its name, for the tables.
        left_out: items that could not be scored.
        resamples: number of resamples.
        seed: of the resamples.

    Raises:
        ValueError: there are no items.
    """
    values = benchmark.figures(items, weights_of(benchmark, items, resamples=resamples, seed=seed))
    figures = {
        name: Figure(column[0].item(), *interval(column[1:], level=LEVEL)) for name, column in values.items()
    }
    return Report(benchmark, model, figures, list(_groups(benchmark, items)), left_out, resamples, seed)


def markdown(report: Report) -> str:
    """Return the page: both conventions side by side, categories with ties, and the rows of the paper."""
    benchmark = report.benchmark
    known = " or ".join(f"{size:,}" for size in benchmark.sizes)
    counted = f"{report.num_items:,} items (the releases have {known})"
    if report.left_out:
        counted += f"; **{report.left_out:,} items could not be scored and are left out**"
    parts = [
        f"## {benchmark.title}: {report.model}",
        f"{counted}. In percent; in brackets {LEVEL:.0%} intervals from {report.resamples:,} bootstrap "
        f"resamples of the items within each category, seed {report.seed}. *official* is the benchmark's own "
        "metric; *paper* averages as InternLM-XComposer2.5-Reward does, over items. A tie counts as "
        f"{benchmark.ties} in the official column, where the benchmark leaves that open.",
        _table(("figure", OFFICIAL, PAPER), _conventions(report)),
        _table(
            ("category", "items", "mean result", "items with ties", "no number"),
            (
                (row.name, f"{row.items:,}", _percent(row.result), f"{row.ties:,}", f"{row.broken:,}")
                for row in report.groups
            ),
        ),
    ]
    if benchmark.paper:
        columns = list(next(iter(benchmark.paper.values())))
        parts += [
            "Beside the rows of the paper's table (arXiv 2501.12368):",
            _table(("model", *columns), _beside(report, columns)),
        ]
    return "\n\n".join(parts) + "\n"


def percent(figure: Figure) -> str:
    """A figure with its interval; a dash where it has no items."""
    if figure.value != figure.value:
        return "-"
    return f"{_percent(figure.value)} [{_percent(figure.low)}, {_percent(figure.high)}]"


def _groups(benchmark: Benchmark, items: Sequence[ScoredItem]) -> Iterator[GroupRow]:
    results = benchmark.results(items).tolist()
    for name in sorted({item.group for item in items}):
        rows = [(item, result) for item, result in zip(items, results, strict=True) if item.group == name]
        yield GroupRow(
            name=name,
            items=len(rows),
            result=sum(result for _, result in rows) / len(rows),
            ties=sum(item.num_ties > 0 for item, _ in rows),
            broken=sum(any(score != score for score in item.chosen + item.rejected) for item, _ in rows),
        )


def _conventions(report: Report) -> Iterator[list[str]]:
    names = dict.fromkeys(name.partition("_")[2] for name in report.figures)
    for name in names:
        cells = [report.figures.get(f"{convention}_{name}") for convention in (OFFICIAL, PAPER)]
        yield [name, *(percent(cell) if cell else "" for cell in cells)]


def _beside(report: Report, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for convention in (PAPER, OFFICIAL):
        cells = (report.figures[f"{convention}_{name}"].value for name in columns)
        yield (f"**{report.model}** ({convention})", *map(_percent, cells))
    for model, row in report.benchmark.paper.items():
        yield (model, *(f"{row[name]:.1f}" for name in columns))


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, ruler, *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _numbers(names: Sequence[str]) -> Tensor:
    """A number for each different name, in the order of their first use."""
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([known[name] for name in names], dtype=torch.long)
