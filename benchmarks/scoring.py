# SPDX-License-Identifier: Apache-2.0
"""Candidates of different length to prompts of different length, scored in parts as a data set is.

``python benchmarks/scoring.py`` takes about 20 minutes on two quiet cores and prints how many times as fast
prompts that are read once for all their candidates are scored as candidates that are each a sequence of their
own, in the median over the rounds and at the least and the most, and the ceiling, the ratio of the real
tokens. ``--help`` tells what can be changed.

shared    A row of trees for each part, no padding; a prompt whose candidates lie in two parts is read twice.
padded    The same parts as batches of sequences, filled up to the longest. Pictures are encoded once.
alone     Every candidate as a sequence of its own, one at a time.

All score by ``score_responses`` with a reward model of about 25 million parameters.
"""

from __future__ import annotations

import argparse
import random
from functools import partial

import torch
from _judge import PICTURE_TOKENS, build_judge, prompts_of, responses_of
from _timing import compare, describe, take_turns, tell

from ixc_lightning.functional.packing import Trees
from ixc_lightning.models import RewardModel
from ixc_lightning.models.scoring import score_responses


@torch.no_grad()
def score(judge: RewardModel, trees: Trees, *, shares: bool, size: int) -> torch.Tensor:
    """The scores of all candidates, so many in each forward pass."""
    judge.shares = shares
    return score_responses(judge, *trees, size=size)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of the data set")
    parser.add_argument("--candidates", type=int, nargs=2, default=[2, 8], help="of a prompt, least and most")
    parser.add_argument("--prompt", type=int, nargs=2, default=[300, 1500], help="tokens, least and most")
    parser.add_argument("--response", type=int, nargs=2, default=[50, 300], help="tokens, least and most")
    parser.add_argument("--size", type=int, default=16, help="candidates of a forward pass")
    parser.add_argument("--kinds", nargs="+", default=["text", "image"], choices=["text", "image"])
    parser.add_argument("--layers", type=int, default=6, help="of the language model")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    args = parser.parse_args()
    if "image" in args.kinds and args.prompt[0] <= PICTURE_TOKENS:
        parser.error(f"a prompt with a picture has more than {PICTURE_TOKENS} tokens: raise --prompt")
    judge, results = build_judge(layers=args.layers, width=args.width).eval(), []
    for kind in args.kinds:
        draw = random.Random(0)
        lengths = [draw.randint(*args.prompt) for _ in range(args.prompts)]
        index = [tree for tree in range(args.prompts) for _ in range(draw.randint(*args.candidates))]
        tokens = [draw.randint(*args.response) for _ in index]
        trees = Trees(prompts_of(lengths, judge, kind=kind), responses_of(tokens), torch.tensor(index))
        ways = {
            "shared": partial(score, judge, trees, shares=True, size=args.size),
            "padded": partial(score, judge, trees, shares=False, size=args.size),
            "alone": partial(score, judge, trees, shares=False, size=1),
        }
        ceiling = (sum(tokens) + sum(lengths[tree] for tree in index)) / (sum(tokens) + sum(lengths))
        spent = take_turns(ways, rounds=args.rounds)
        for other in ("padded", "alone"):
            apart = (ways["shared"]() - ways[other]()).abs().max().item()
            result = compare(spent, a="shared", b=other, ceiling=ceiling)
            print(f"{kind}, against {other}: {describe(result)}; scores differ by {apart:.1e}", flush=True)
            results.append({"prompts": args.prompts, "candidates": len(index), "kind": kind, **result})
    tell("scoring", results)


if __name__ == "__main__":
    main()
