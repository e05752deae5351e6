# SPDX-License-Identifier: Apache-2.0
"""Preference pairs whose prompt is read once for both responses, and the same pairs read as two sequences.

``python benchmarks/pair_forward.py`` takes about half an hour on two quiet cores and prints, for each length
and kind of prompt, how many times as fast the shared way is, in the median over the rounds and at the least
and the most, and the ceiling: (2P + Rc + Rr) / (P + Rc + Rr), the ratio of the tokens. More than the ceiling
is possible, because attention shrinks as well, and that with the square of the length. ``--help`` tells what
can be changed.

shared    One row [prompt, chosen, rejected] for each pair, no padding.
separate  Two sequences, prompt and chosen, prompt and rejected. A picture is encoded once for both.

Both run the same reward model, about 25 million parameters, through ``RewardModel.forward``.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from _judge import build_judge, prompts_of, responses_of
from _timing import compare, describe, take_turns, tell

from ixc_lightning.functional.packing import Trees, pairs
from ixc_lightning.functional.preference import pairwise_loss
from ixc_lightning.models import RewardModel

LENGTHS = ("512/300", "1500/300", "4000/300", "4096/256", "1024/512")


def score(judge: RewardModel, trees: Trees, *, shares: bool, backward: bool) -> torch.Tensor:
    """One pass over the pairs; the scores."""
    judge.shares = shares
    judge.zero_grad()
    with torch.set_grad_enabled(backward):
        scores = judge(trees, judge.encode(trees.prompts))
        if backward:
            pairwise_loss(*scores.chunk(2)).backward()
    return scores.detach()


def measure(judge: RewardModel, lengths: str, kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The ratios of one length and kind, forward alone and with the backward pass."""
    prompt, response = map(int, lengths.split("/"))
    responses = [responses_of([response] * args.pairs) for _ in range(2)]
    trees = pairs(prompts_of([prompt] * args.pairs, judge, kind=kind), *responses)
    ceiling = (2 * prompt + 2 * response) / (prompt + 2 * response)
    results = []
    for backward in (False, True):
        ways = {
            name: lambda shares=name == "shared", backward=backward: score(
                judge, trees, shares=shares, backward=backward
            )
            for name in ("shared", "separate")
        }
        apart = (ways["shared"]() - ways["separate"]()).abs().max().item()
        result = compare(take_turns(ways, rounds=args.rounds), a="shared", b="separate", ceiling=ceiling)
        what = "forward and backward" if backward else "forward"
        print(f"{kind} {lengths}, {what}: {describe(result)}; scores differ by {apart:.1e}", flush=True)
        results.append({"prompt": prompt, "response": response, "kind": kind, "pass": what, **result})
    return results


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a batch")
    parser.add_argument("--lengths", nargs="+", default=LENGTHS, help="tokens of prompt/response")
    parser.add_argument("--kinds", nargs="+", default=["text", "image"], choices=["text", "image"])
    parser.add_argument("--layers", type=int, default=6, help="of the language model")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    args = parser.parse_args()
    judge = build_judge(layers=args.layers, width=args.width)
    results = [
        result
        for kind in args.kinds
        for lengths in args.lengths
        for result in measure(judge, lengths, kind, args)
    ]
    tell("pair_forward", results)


if __name__ == "__main__":
    main()
