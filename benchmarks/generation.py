# SPDX-License-Identifier: Apache-2.0
"""Samples of prompts whose prompt is read once, and transformers' ``generate`` on as many copies of it.

``python benchmarks/generation.py`` takes about 20 minutes on two quiet cores and prints, for each length of a
prompt and number of samples, how many times as fast the shared way is, in the median over the rounds and at
the least and the most, and the ceiling n (P + T) / (P + n T), the ratio of the tokens that are read, with the
mean length T of the answers. More is possible: a step of decoding reads the prompt's keys and values once for
all samples, and rows that have ended leave. ``--help`` tells what can be changed.

shared    Every prompt is read once; rows grow behind it, and go when they have ended.
copies    ``generate`` with n copies of every prompt, until the last row has ended.

Both are ``TransformersEngine.generate`` with the same seed, and so answer the same; answers end at random,
most of them early, at the latest after ``--tokens``. The model has about 25 million parameters.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import torch
from _judge import build_config, prompts_of
from _timing import compare, describe, take_turns, tell

from ixc_lightning.models import Backbone
from ixc_lightning.rollout import Sampling, TransformersEngine
from ixc_lightning.types import PromptBatch, Responses, Rollout


def build_policy(*, layers: int, width: int, dtype: str, device: str) -> Backbone:
    """An InternVL with fresh weights and proportions like those of a 7B model."""
    with tempfile.TemporaryDirectory() as folder:
        build_config(layers=layers, width=width).save_pretrained(folder)
        torch.manual_seed(0)
        return Backbone(folder, weights="random", head=True, dtype=dtype).eval().to(device)


def batch_of(prompts: int, length: int, policy: Backbone, *, device: str) -> PromptBatch:
    """Prompts of so many tokens."""
    asked = prompts_of([length] * prompts, policy, kind="text")
    none = torch.zeros(prompts, 0, dtype=torch.long)
    return PromptBatch(
        prompts=asked._replace(ids=asked.ids.to(device), mask=asked.mask.to(device)),
        reference=Responses(none, none.bool()),
        answers=[None] * prompts,
        domain=torch.zeros(prompts, dtype=torch.long),
        modality=torch.zeros(prompts, dtype=torch.long),
        keys=[str(row) for row in range(prompts)],
        real=torch.ones(prompts, dtype=torch.bool),
        position=prompts,
        bad=[],
    )


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--prompts", type=int, default=1, help="prompts of a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 1500], help="tokens of a prompt")
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 16], help="samples of a prompt")
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of an answer")
    parser.add_argument("--layers", type=int, default=6, help="of the language model")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    policy = build_policy(layers=args.layers, width=args.width, dtype=args.dtype, device=args.device)
    vocabulary, results = policy.config.get_text_config().vocab_size, []
    # a share 2 / tokens of the vocabulary ends an answer: half of them end before about a third of the limit
    stops = tuple(range(300, 300 + max(1, 2 * vocabulary // args.tokens)))
    for length in args.lengths:
        batch = batch_of(args.prompts, length, policy, device=args.device)
        for n in args.samples:
            sampling = Sampling(n=n, max_tokens=args.tokens, stop_tokens=stops)

            def answer(sharing: str, batch: PromptBatch, sampling: Sampling) -> Rollout:
                return TransformersEngine(sharing=sharing).generate(policy, batch, None, sampling, seed=1)

            ways = {
                name: partial(answer, sharing, batch, sampling)
                for name, sharing in (("shared", "auto"), ("copies", "off"))
            }
            ours, theirs = (ways[name]() for name in ways)
            same = (ours.lengths == theirs.lengths).float().mean().item()
            tokens = ours.lengths.float().mean().item()
            ceiling = n * (length + tokens) / (length + n * tokens)
            result = compare(take_turns(ways, rounds=args.rounds), a="shared", b="copies", ceiling=ceiling)
            print(
                f"{n} samples behind {length} tokens, {tokens:.0f} tokens each: {describe(result)}; "
                f"{same:.0%} of the answers are of equal length",
                flush=True,
            )
            results.append({"prompt": length, "samples": n, "tokens": round(tokens), **result})
    tell("generation", results)


if __name__ == "__main__":
    main()
