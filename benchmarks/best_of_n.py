# SPDX-License-Identifier: Apache-2.0
"""Candidates of best-of-N, whose prompt is read once for all of them, and each as a sequence of its own.

``python benchmarks/best_of_n.py`` takes about 15 minutes on two quiet cores and prints, for each N and kind
of prompt, how many times as fast the shared way is, in the median over the rounds and at the least and the
most, and the ceiling N (P + R) / (P + N R), the ratio of the tokens. ``--help`` tells what can be changed.

shared    One row [prompt, candidate, candidate, …], no padding.
separate  N sequences of prompt and candidate, in one batch. A picture is encoded once for all.

Both score by ``score_responses``, as ``predict``, validation with best-of-N and the benchmarks do, with a
reward model of about 25 million parameters.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from _judge import build_judge, prompts_of, responses_of
from _timing import compare, describe, take_turns, tell

from ixc_lightning.models import RewardModel
from ixc_lightning.models.scoring import score_responses
from ixc_lightning.types import Prompts, Responses


@torch.no_grad()
def score(judge: RewardModel, prompts: Prompts, candidates: Responses, *, shares: bool) -> torch.Tensor:
    """The scores of the candidates, all in one forward pass."""
    judge.shares = shares
    count = len(candidates.ids)
    return score_responses(judge, prompts, candidates, torch.zeros(count, dtype=torch.long), size=count)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--n", type=int, nargs="+", default=[4, 16], help="candidates")
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of the prompt")
    parser.add_argument("--response", type=int, default=200, help="tokens of a candidate")
    parser.add_argument("--kinds", nargs="+", default=["text", "image"], choices=["text", "image"])
    parser.add_argument("--layers", type=int, default=6, help="of the language model")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    args = parser.parse_args()
    judge, results = build_judge(layers=args.layers, width=args.width).eval(), []
    for kind in args.kinds:
        for n in args.n:
            prompts, candidates = (
                prompts_of([args.prompt], judge, kind=kind),
                responses_of([args.response] * n),
            )
            ways = {
                name: partial(score, judge, prompts, candidates, shares=name == "shared")
                for name in ("shared", "separate")
            }
            ceiling = n * (args.prompt + args.response) / (args.prompt + n * args.response)
            apart = (ways["shared"]() - ways["separate"]()).abs().max().item()
            result = compare(take_turns(ways, rounds=args.rounds), a="shared", b="separate", ceiling=ceiling)
            print(f"{kind} best of {n}: {describe(result)}; scores differ by {apart:.1e}", flush=True)
            results.append({"n": n, "prompt": args.prompt, "response": args.response, "kind": kind, **result})
    tell("best_of_n", results)


if __name__ == "__main__":
    main()
