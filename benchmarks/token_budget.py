# SPDX-License-Identifier: Apache-2.0
"""Reward training on batches by tokens beside batches by number, over the same pairs of very unlike lengths.

``python benchmarks/token_budget.py`` takes minutes on two quiet cores. The lengths are log-normal, as
those of chat data are: prompts of 300 tokens in the median, a tenth of them above 800, responses of 100.
For pairs read as trees and as padded sequences it prints how many times as fast a pass over all pairs is by
tokens, and what it ought to gain: the ratio of the places that are computed, padding included. Batches by
number have as many pairs as the budget holds on average.

``padding``   share of the computed places that is empty.
``peak``      places of the largest batch over those of the mean one: what memory has to be kept for.
``waiting``   share of the time that ranks wait for the one with the most tokens, eight of them, if time goes
              with tokens; of the lengths alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from _judge import build_judge, prompts_of, responses_of
from _timing import compare, describe, take_turns, tell

from ixc_lightning.datamodules.order import Part, TrainingOrder
from ixc_lightning.functional.packing import Trees, pairs
from ixc_lightning.functional.preference import pairwise_loss
from ixc_lightning.models import RewardModel

RANKS = 8
POOL = 8
"""Units of a pool whose pairs are sorted by length."""


def lengths_of(number: int, *, most: int) -> np.ndarray:
    """Lengths of prompt, chosen and rejected response of so many pairs."""
    spread = np.exp(np.random.default_rng(0).normal(size=(number, 3)) * [0.8, 0.6, 0.6])
    return np.clip((spread * [300, 100, 100]).astype(int), 8, most)


def costs_of(lengths: np.ndarray, *, shares: bool) -> np.ndarray:
    """Tokens of each pair: its prompt once as a tree, else two sequences of the longer one's length."""
    return lengths.sum(axis=1) if shares else 2 * (lengths[:, 0] + lengths[:, 1:].max(axis=1))


def places_of(costs: np.ndarray, batch: Sequence[int], *, shares: bool) -> int:
    """Places that a batch is computed on."""
    return int(costs[batch].sum() if shares else len(batch) * costs[batch].max())


def cut(costs: np.ndarray, *, by: str, tokens: int, shares: bool) -> list[list[int]]:
    """The batches of an epoch, by tokens or by number."""
    unit = max(1, round(tokens / costs.mean()))
    options = {"pool": POOL, "costs": costs.__getitem__, "cut": "costs"} if by == "tokens" else {}
    order = TrainingOrder([Part([len(costs)])], seed=0, unit=unit, **options)
    batches: list[list[int]] = [[]]
    for pair in order.records(0, np.arange(len(costs))).tolist():
        longer = [*batches[-1], pair]
        is_full = len(longer) > unit if by == "number" else places_of(costs, longer, shares=shares) > tokens
        batches = [*batches, [pair]] if is_full else [*batches[:-1], longer]
    return batches


def describe_batches(
    costs: np.ndarray, real: int, batches: list[list[int]], *, shares: bool
) -> dict[str, Any]:
    """Padding, peak and waiting."""
    places = np.array([places_of(costs, batch, shares=shares) for batch in batches])
    steps = np.pad(places, (0, -len(places) % RANKS)).reshape(-1, RANKS)[:-1]
    return {
        "batches": len(batches),
        "padding": round(float(1 - real / places.sum()), 3),
        "peak": round(float(places.max() / places.mean()), 3),
        "waiting": round(float(1 - steps.mean() / steps.max(axis=1).mean()), 3) if len(steps) else None,
    }


def train(judge: RewardModel, batches: list[Trees], *, shares: bool) -> None:
    """One pass over the batches, forward and backward."""
    judge.shares = shares
    for trees in batches:
        judge.zero_grad()
        pairwise_loss(*judge(trees, judge.encode(trees.prompts)).chunk(2)).backward()


def measure(judge: RewardModel, args: argparse.Namespace, *, shares: bool) -> dict[str, Any]:
    """The ratio for trees, or for padded sequences."""
    lengths, many = lengths_of(args.pairs, most=args.most), lengths_of(100 * args.pairs, most=args.most)
    costs, real = costs_of(lengths, shares=shares), 2 * lengths[:, 0].sum() + lengths[:, 1:].sum()
    real = int(lengths.sum() if shares else real)
    told, ways, places = {}, {}, {}
    for by in ("tokens", "number"):
        batches = cut(costs, by=by, tokens=args.tokens, shares=shares)
        all_costs = costs_of(many, shares=shares)
        many_real = int(many.sum() if shares else 2 * many[:, 0].sum() + many[:, 1:].sum())
        of_many = cut(all_costs, by=by, tokens=args.tokens, shares=shares)
        told[by] = describe_batches(all_costs, many_real, of_many, shares=shares)
        places[by] = sum(places_of(costs, batch, shares=shares) for batch in batches)
        trees = [
            pairs(
                prompts_of(lengths[batch, 0].tolist(), judge, kind="text"),
                *(responses_of(lengths[batch, column].tolist()) for column in (1, 2)),
            )
            for batch in batches
        ]
        ways[by] = lambda trees=trees: train(judge, trees, shares=shares)
    spent = take_turns(ways, rounds=args.rounds)
    result = compare(spent, a="tokens", b="number", ceiling=places["number"] / places["tokens"])
    layout = "trees" if shares else "padded sequences"
    print(f"{layout}: {describe(result)}; by tokens {told['tokens']}, by number {told['number']}", flush=True)
    beside = {name: f"{told['tokens'][name]} / {told['number'][name]}" for name in told["tokens"]}
    return {"layout": layout, "real tokens": real, **beside, **result}


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument(
        "--pairs", type=int, default=64, help="in an epoch; the shares are of 100 times as many"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--most", type=int, default=2000, help="tokens of a prompt or response")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--width", type=int, default=256, help="of the language model")
    args = parser.parse_args()
    torch.manual_seed(0)
    judge = build_judge(layers=args.layers, width=args.width)
    tell("token_budget", [measure(judge, args, shares=shares) for shares in (True, False)])


if __name__ == "__main__":
    main()
