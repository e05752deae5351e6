# SPDX-License-Identifier: Apache-2.0
"""From rated responses to pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import Any

from ixc_lightning.datamodules.sources._drafts import Dropped
from ixc_lightning.datamodules.sources._reading import Row


def to_number(value: Any) -> float | None:
    """Return a rating as a number, or None for what is none, such as ``N/A``."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def mean_rating(values: Sequence[Any]) -> float | None:
    """Return the mean of the ratings that are numbers, or None where none is."""
    numbers = [number for number in map(to_number, values) if number is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def read_completion(completion: Any, row: Row) -> tuple[str, float | None]:
    """Return the response of a completion and its mean rating, as UltraFeedback and VLFeedback hold them.

    Args:
        completion: ``response``, and in ``annotations`` for each aspect an object with a ``Rating``.
        row: for messages.

    Raises:
        InputError: naming the row, if it is no such object.
    """
    fields = completion if isinstance(completion, dict) else {}
    response, aspects = fields.get("response"), fields.get("annotations")
    if not isinstance(response, str | None) or not isinstance(aspects, dict):
        raise row.error("completions", "each must be an object with a response and annotations")
    return response or "", mean_rating(
        [aspect.get("Rating") for aspect in aspects.values() if isinstance(aspect, dict)]
    )


def best_and_worst(ratings: Sequence[float | None], *, min_gap: float) -> tuple[int, int]:
    """Return the places of the highest and the lowest rating; among equals the first.

    Args:
        ratings: of the responses; None takes no part.
        min_gap: how far apart they must at least be; equal ratings are never a pair.

    Raises:
        Dropped: fewer than two ratings, or no such gap.
    """
    rated = _rated(ratings)
    best = max(rated, key=lambda place: (rated[place], -place))
    worst = min(rated, key=lambda place: (rated[place], place))
    _check_gap(rated[best] - rated[worst], min_gap)
    return best, worst


def best_and_lower(ratings: Sequence[float | None], *, min_gap: float, seed: str) -> tuple[int, int]:
    """Return the places of the highest rating and of a random one that is lower; raises as the above.

    Args:
        ratings: of the responses; None takes no part.
        min_gap: how far apart they must at least be; equal ratings are never a pair.
        seed: the choice follows from this string alone; give it the id of the row.
    """
    rated = _rated(ratings)
    best = max(rated, key=lambda place: (rated[place], -place))
    lower = [place for place in rated if rated[best] - rated[place] >= max(min_gap, math.ulp(0))]
    if not lower:
        _check_gap(rated[best] - min(rated.values()), min_gap)
    return best, Random(seed).choice(lower)


def all_pairs(ratings: Sequence[float | None], *, min_gap: float) -> list[tuple[int, int]]:
    """Return (better, worse) of every two ratings that are far enough apart; raises as the above."""
    rated = _rated(ratings)
    ordered = [
        (left, right) if rated[left] > rated[right] else (right, left)
        for left, right in combinations(rated, 2)
    ]
    pairs = [pair for pair in ordered if rated[pair[0]] - rated[pair[1]] >= max(min_gap, math.ulp(0))]
    if not pairs:
        _check_gap(max(rated.values()) - min(rated.values()), min_gap)
    return pairs


def _rated(ratings: Sequence[float | None]) -> dict[int, float]:
    rated = {place: rating for place, rating in enumerate(ratings) if rating is not None}
    if len(rated) < 2:
        raise Dropped("fewer than two responses have ratings")
    return rated


def _check_gap(gap: float, min_gap: float) -> None:
    if gap <= 0:
        raise Dropped("the ratings are equal")
    if gap < min_gap:
        raise Dropped("the ratings are too close")
