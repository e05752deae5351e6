# SPDX-License-Identifier: Apache-2.0
"""Two models on the same items of a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ixc_lightning.functional.bootstrap import interval, sign_probability
from ixc_lightning.metrics.benchmark import Benchmark, ScoredItem
from ixc_lightning.metrics.report import LEVEL, weights_of


class Matched(NamedTuple):
    """Items of two files.

    Attributes:
        pairs: the items that both hold, in the order of the first.
        only_first: those that the second lacks.
        only_second: those that the first lacks.
    """

    pairs: list[tuple[ScoredItem, ScoredItem]]
    only_first: list[ScoredItem]
    only_second: list[ScoredItem]


class Difference(NamedTuple):
    """One figure of two models on the same items.

    Attributes:
        first: of the first model.
        second: of the second model.
        difference: second minus first.
        low: lower end of the difference's 95 % interval.
        high: upper end.
        p: two-sided bootstrap probability of a difference of the other sign, or none; at most 1.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def match_items(first: Sequence[ScoredItem], second: Sequence[ScoredItem]) -> Matched:
    """Pair the items of two files by their digests; items with the same texts pair in their order."""
    keys = [_keys(items) for items in (first, second)]
    there = dict(zip(keys[1], second, strict=True))
    pairs = [(item, there[key]) for key, item in zip(keys[0], first, strict=True) if key in there]
    both = set(keys[0]) & set(there)
    only_first, only_second = (
        [item for key, item in zip(own, items, strict=True) if key not in both]
        for own, items in zip(keys, (first, second), strict=True)
    )
    return Matched(pairs, only_first, only_second)


def paired_differences(
    benchmark: Benchmark, pairs: Sequence[tuple[ScoredItem, ScoredItem]], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """Every figure of both models, and of their difference on the same resamples of the items.

    Args:
        benchmark: the figures.
        pairs: the same item scored by both models; at least one.
        resamples: number of resamples.
        seed: of the resamples.

    Raises:
        ValueError: there are no pairs.
    """
    # Rows may differ between releases; what is resampled must be the same for both.
    first = [item for item, _ in pairs]
    second = [item._replace(row=own.row, id=own.id, group=own.group) for own, item in pairs]
    weights = weights_of(benchmark, first, resamples=resamples, seed=seed)
    figures = benchmark.figures(first, weights), benchmark.figures(second, weights)
    found = {}
    for name, own in figures[0].items():
        difference = figures[1][name] - own
        low, high = interval(difference[1:], level=LEVEL)
        found[name] = Difference(
            first=own[0].item(),
            second=figures[1][name][0].item(),
            difference=difference[0].item(),
            low=low,
            high=high,
            p=sign_probability(difference[1:]),
        )
    return found


def _keys(items: Sequence[ScoredItem]) -> list[tuple[str, int]]:
    """Digest of each item, and how many with the same one stand before it."""
    seen: Counter[str] = Counter()
    keys = []
    for item in items:
        keys.append((item.digest, seen[item.digest]))
        seen[item.digest] += 1
    return keys
