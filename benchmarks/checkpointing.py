# SPDX-License-Identifier: Apache-2.0
"""Activations that are computed again in the backward pass: the time it takes and the memory it saves.

``python benchmarks/checkpointing.py`` takes some minutes on two quiet cores and prints for each way how many
times as fast it is as keeping everything, in the median over the rounds and at the least and the most, and
what share it keeps for the backward pass of the bytes that keeping everything keeps. On a GPU the share is
that of the peak memory above what was there before. ``--help`` tells what can be changed.

keep       Everything is kept.
every 2nd  Every second layer is computed again.
selective  Every layer, but its matrix products and attention are kept.
all        Every layer is computed again as a whole.

All train the same reward model, about 25 million parameters, on pairs that share their prompts. The ceiling
is that of what is computed again, when the forward pass is a third of a step: 3/3, 3/3.5, 3/3, 3/4.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from inspect import signature

import torch
from _judge import build_judge, prompts_of, responses_of
from _timing import compare, describe, take_turns, tell
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ixc_lightning.functional.packing import Trees, pairs
from ixc_lightning.functional.preference import pairwise_loss
from ixc_lightning.models import RewardModel
from ixc_lightning.models.checkpointing import Checkpointing, checkpoint_activations

WAYS: dict[str, Checkpointing] = {"keep": False, "every 2nd": 2, "selective": "selective", "all": True}
CEILINGS = {"every 2nd": 3 / 3.5, "selective": 1.0, "all": 3 / 4}
RESPECTS = "respect_saved_tensors_hooks"


def choose(judge: RewardModel, how: Checkpointing) -> None:
    """Have the model keep what it is told to."""
    judge.backbone.model.activation_checkpointing_disable()
    checkpoint_activations(judge.backbone.model, how)
    if how == "selective" and RESPECTS in signature(checkpoint).parameters:
        for layer in judge.backbone.decoder_layers():
            layer._gradient_checkpointing_func.keywords.setdefault(RESPECTS, True)


def forward(judge: RewardModel, trees: Trees) -> Tensor:
    """The loss of the pairs."""
    return pairwise_loss(*judge(trees, judge.encode(trees.prompts)).chunk(2))


def step(judge: RewardModel, trees: Trees, how: Checkpointing) -> None:
    """Forward and backward."""
    choose(judge, how)
    judge.zero_grad()
    forward(judge, trees).backward()


def memory(judge: RewardModel, trees: Trees, how: Checkpointing) -> int:
    """Bytes that are kept for the backward pass; on a GPU the peak of a step above what was there before."""
    if torch.cuda.is_available():
        step(judge, trees, how)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(judge, trees, how)
        return torch.cuda.max_memory_allocated() - before
    choose(judge, how)
    weights = {weight.untyped_storage().data_ptr() for weight in judge.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward(judge, trees)
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a batch")
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=300, help="tokens of a response")
    parser.add_argument("--layers", type=int, default=6, help="of the language model")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        judge = build_judge(layers=args.layers, width=args.width, dtype=args.dtype).train()
        responses = [responses_of([args.response] * args.pairs) for _ in range(2)]
        trees = pairs(prompts_of([args.prompt] * args.pairs, judge, kind="text"), *responses)
    ways: dict[str, Callable[[], None]] = {
        name: lambda how=how: step(judge, trees, how)  # type: ignore[misc]
        for name, how in WAYS.items()
    }
    kept = {name: memory(judge, trees, how) for name, how in WAYS.items()}
    spent = take_turns(ways, rounds=args.rounds)
    results = []
    for name, ceiling in CEILINGS.items():
        result = compare(spent, a=name, b="keep", ceiling=ceiling)
        share = kept[name] / kept["keep"]
        print(f"{name}: {describe(result)}; memory {share:.2f} of {kept['keep'] / 2**20:.0f} MiB", flush=True)
        results.append({"way": name, "memory": round(share, 3), **result})
    tell("checkpointing", results)


if __name__ == "__main__":
    main()
