# SPDX-License-Identifier: Apache-2.0
"""Which responses to one prompt are compared, and which of them become a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import Literal, NamedTuple

Verdict = Literal["a", "b", "tie"]
"""Which of two responses is better."""


class Preference(NamedTuple):
    """One response is better than another one.

    Attributes:
        chosen: number of the better response.
        rejected: number of the other one.
        gap: how much better it is, in the judge's own unit; positive.
    """

    chosen: int
    rejected: int
    gap: float


class Choice(NamedTuple):
    """The pairs of one prompt, and what kept other preferences from becoming one.

    Attributes:
        pairs: in the order in which they were chosen.
        too_long: preferences left out because the chosen response is too long beside the rejected one.
        too_short: those left out because it is too short.
    """

    pairs: list[Preference]
    too_long: int
    too_short: int


def preferences_by_score(scores: Sequence[float | None], *, min_gap: float = 0.0) -> list[Preference]:
    """Every preference that scores express, in the order of the responses.

    Args:
        scores: of each response, higher is better; None where it has none, and so is in no preference.
        min_gap: smallest difference that counts; equal scores never do.

    Returns:
        All (i, j, sᵢ − sⱼ) with sᵢ > sⱼ and sᵢ − sⱼ ≥ min_gap.

    Raises:
        ValueError: ``min_gap`` is negative, or a score is not a number.

    Example:
        >>> preferences_by_score([1.0, None, 0.0])
        [Preference(chosen=0, rejected=2, gap=1.0)]
    """
    if min_gap < 0:
        raise ValueError(f"min_gap is {min_gap}, but must not be negative")
    if any(score is not None and score != score for score in scores):
        raise ValueError("a score is not a number, so nobody can say what it is better than")
    known = [(place, score) for place, score in enumerate(scores) if score is not None]
    return [
        Preference(i, j, better - worse)
        for i, better in known
        for j, worse in known
        if better > worse and better - worse >= min_gap
    ]


def choose_pairs(
    preferences: Sequence[Preference],
    lengths: Sequence[int],
    *,
    count: int = 1,
    prefer: Literal["gap", "random"] = "gap",
    max_length_ratio: float | None = None,
    min_length_ratio: float | None = None,
    seed: int | str = 0,
) -> Choice:
    """The preferences of one prompt that become pairs.

    One is taken after the other: first those whose responses are in the fewest pairs so far, so that pairs
    differ, then those of the largest gap, then at random. Lengths are bounded because a chosen response that
    is much longer than the rejected one teaches that length is quality (InternLM-XComposer2.5-Reward, §3,
    length constraints; arXiv 2501.12368).

    Args:
        preferences: between the responses.
        lengths: tokens of each response.
        count: most pairs.
        prefer: ``gap`` takes the best against the worst; ``random`` leaves gaps aside: any right one against
            any wrong one.
        max_length_ratio: largest tokens of chosen / tokens of rejected; null is any.
        min_length_ratio: smallest such ratio; null is any.
        seed: decides what is left to chance.

    Raises:
        ValueError: ``count`` is not positive, or the ratios leave nothing between them.

    Example:
        >>> better = [Preference(0, 1, 1.0), Preference(0, 2, 3.0)]
        >>> choose_pairs(better, [5, 5, 5]).pairs
        [Preference(chosen=0, rejected=2, gap=3.0)]
    """
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    longest = float("inf") if max_length_ratio is None else max_length_ratio
    shortest = 0.0 if min_length_ratio is None else min_length_ratio
    if not 0 <= shortest <= longest or longest == 0:
        raise ValueError(f"no length ratio lies between {shortest} and {longest}")
    too_long = [one for one in preferences if lengths[one.chosen] > longest * lengths[one.rejected]]
    too_short = [one for one in preferences if lengths[one.chosen] < shortest * lengths[one.rejected]]
    left = [one for one in preferences if one not in too_long and one not in too_short]
    Random(seed).shuffle(left)
    if prefer == "gap":
        left.sort(key=lambda one: -one.gap)  # stable, so that equal gaps stay shuffled
    uses: Counter[int] = Counter()
    pairs: list[Preference] = []
    while left and len(pairs) < count:
        best = min(left, key=lambda one: uses[one.chosen] + uses[one.rejected])
        left.remove(best)
        uses.update((best.chosen, best.rejected))
        pairs.append(best)
    return Choice(pairs, len(too_long), len(too_short))


def comparisons(
    texts: Sequence[str], *, reference: int | None, count: int, seed: int | str = 0
) -> list[tuple[int, int]]:
    """The pairs of responses that a judge is asked about, each of two different texts.

    Args:
        texts: the responses; of equal ones only the first is compared.
        reference: number of a response that all others are compared with, as the paper compares samples with
            the answer of the instruction; null compares the responses with each other.
        count: most comparisons; a random choice beyond it.
        seed: of that choice.

    Returns:
        Pairs of numbers, in rising order.

    Raises:
        ValueError: ``count`` is not positive.

    Example:
        >>> comparisons(["x", "y", "x", "z"], reference=None, count=9)
        [(0, 1), (0, 3), (1, 3)]
    """
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    if reference is not None:
        first[texts[reference]] = reference
    distinct = sorted(first.values())
    every = [pair for pair in combinations(distinct, 2) if reference is None or reference in pair]
    return every if len(every) <= count else sorted(Random(seed).sample(every, count))


def agreed(straight: Verdict, swapped: Verdict) -> Literal["a", "b", "tie", "disagreement"]:
    """What two verdicts about the same responses say together.

    Judges favour a place, most often the first (Zheng et al. 2023, §3.3, arXiv 2306.05685), so that only
    verdicts which name the same response in both orders count.

    Args:
        straight: which is better, of the responses in their order.
        swapped: which is better with the places exchanged: ``a`` is then the second response.

    Example:
        >>> agreed("a", "b"), agreed("a", "a"), agreed("tie", "tie")
        ('a', 'disagreement', 'tie')
    """
    unswapped = {"a": "b", "b": "a", "tie": "tie"}[swapped]
    return straight if straight == unswapped else "disagreement"
