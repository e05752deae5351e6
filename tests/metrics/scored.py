# SPDX-License-Identifier: Apache-2.0
"""Scored items made by hand, and the figures of a benchmark on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ixc_lightning.metrics.benchmark import Benchmark, ScoredItem

CLOSE = 1e-12  # float64, a few sums of numbers of order 1
NAN = float("nan")


def item(group: str, chosen: object, rejected: object, **fields: object) -> ScoredItem:
    """An item of one or several scores on either side; the other fields may be given."""
    sides = [tuple(side) if isinstance(side, Sequence) else (side,) for side in (chosen, rejected)]
    row = fields.get("row", 0)
    given = {"row": 0, "id": str(row), "subgroup": "", "digest": str(row), **fields}
    return ScoredItem(group=group, chosen=sides[0], rejected=sides[1], **given)


def numbered(*items: ScoredItem) -> list[ScoredItem]:
    """The items with rows that count them, and digests that differ."""
    return [one._replace(row=row, digest=f"d{row}") for row, one in enumerate(items)]


def figures(benchmark: Benchmark, items: Sequence[ScoredItem]) -> dict[str, float]:
    """The figures, each item counting once."""
    weights = torch.ones(1, len(items), dtype=torch.float64)
    return {name: value.item() for name, value in benchmark.figures(items, weights).items()}
