# SPDX-License-Identifier: Apache-2.0
"""Reward training at 7B on one GPU: pairs a second, share of the peak arithmetic, and memory beside the plan.

``python benchmarks/gpu_reward.py`` takes about ten minutes and needs one GPU of 80 GB, with ``--settings
qlora`` one of 24 GB, and ``pip install 'ixc-lightning[quant]'``. ``--tiny`` runs the same code on any
machine. ``--help`` tells what can be changed.

The model has the shape of Qwen2.5-VL-7B and random weights, which change neither speed nor memory. Both
settings compute in bfloat16 and compute every layer's activations again in the backward pass.

qlora   A base in 4 bits and adapters as in ``recipes/single_gpu/reward.yaml``; is to fit in 24 GB.
full    All weights of the language model in bfloat16, AdamW of bitsandbytes with 8-bit states; is to fit in
        80 GB.

In each setting two ways take turns with steps of optimisation of ``--passes`` passes of ``--pairs`` pairs:

shared  One row [prompt, chosen, rejected] for each pair.
plain   Two sequences for each pair, with the attention that ``--attention`` names.

Printed are the tokens of a pass and how many the plan says would fit; the ratio of the speeds, with the ratio
of the tokens as its ceiling; for each way pairs a second, and the model FLOPs utilisation: the arithmetic of
forward and backward passes, without what is computed again, a second, over the GPU's dense bfloat16 peak;
and the peak memory that ``ixc_lightning.planning`` predicts, as ``plan`` does, beside the measured one. The
arithmetic is that of the way's own tokens, so that sharing itself does not raise the utilisation, and of
qlora without the gradients of weights, which a frozen base has none of. ``--hold`` lets PyTorch have no more
memory than the card that a setting is to fit on; without it what is reserved may be more than is needed.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from math import isnan, nan
from typing import Any, NamedTuple

import _gpu as gpu
import torch
from _judge import prompts_of, responses_of
from _timing import compare, describe, machine, take_turns
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from ixc_lightning.functional.packing import Trees, pairs
from ixc_lightning.functional.preference import pairwise_loss
from ixc_lightning.models import RewardModel
from ixc_lightning.models.adapters import LoRA
from ixc_lightning.models.kernels import check_attention
from ixc_lightning.models.shared_attention import NAME as SHARED_ATTENTION
from ixc_lightning.planning import Forecast, Hardware, OneNetwork, Work, cost_of, forecast_training
from ixc_lightning.planning.forecast import Placement

WAYS = ("shared", "plain")
CLIP = 1.0
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H200 NVL": 835, "H100": 989, "H200": 989, "A100": 312}
"""Dense bfloat16 arithmetic by a part of the GPU's name, 10¹² a second; the first that fits counts."""


class Setting(NamedTuple):
    """What is trained, by what, and on what card it is to fit."""

    model: dict[str, Any]
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer]
    limit: float


def eight_bits(weights: Iterable[torch.nn.Parameter]) -> Optimizer:
    """AdamW with 8-bit states."""
    from bitsandbytes.optim import AdamW8bit  # slow to import

    return AdamW8bit(weights, lr=1e-5)


SETTINGS = {
    "qlora": Setting(
        {"quantisation": "nf4", "adapter": LoRA(rank=16, alpha=32.0, dropout=0.05)},
        partial(AdamW, lr=1e-4, weight_decay=0.0, betas=(0.9, 0.95)),
        24.0,
    ),
    "full": Setting({}, eight_bits, 80.0),
}


class Training:
    """A reward model with its optimiser, and batches for a step.

    Args:
        build: makes the model.
        setting: what is trained.
        args: the options.
    """

    def __init__(self, build: Callable[..., RewardModel], setting: Setting, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        with args.device:
            self.judge = build(sharing="auto").train()
            self.batches = [
                pairs(
                    prompts_of([args.prompt] * args.pairs, self.judge, kind="text"),
                    *(responses_of([args.response] * args.pairs) for _ in range(2)),
                )
                for _ in range(args.passes)
            ]
        if not self.judge.shares:
            raise RuntimeError("the model does not share prompts, so there is nothing to compare")
        self.attention = args.attention
        self.weights = [weight for weight in self.judge.parameters() if weight.requires_grad]
        self.optimiser = setting.optimizer(self.weights)

    def take(self, way: str) -> None:
        """Read pairs in this way from now on."""
        self.judge.shares = way == "shared"
        attention = self.attention if way == "plain" and self.attention != "sdpa" else SHARED_ATTENTION
        for part in self.judge.backbone.role_modules()["language"]:
            if isinstance(part, PreTrainedModel):
                part.set_attn_implementation(attention)

    def score(self, trees: Trees) -> torch.Tensor:
        """Scores in bfloat16, as a trainer of precision bf16-mixed has them computed."""
        with torch.autocast(trees.prompts.ids.device.type, torch.bfloat16):
            scores: torch.Tensor = self.judge(trees, None)
        return scores

    def step(self, way: str) -> None:
        """One step of optimisation."""
        self.take(way)
        for trees in self.batches:
            (pairwise_loss(*self.score(trees).chunk(2)) / len(self.batches)).backward()
        clip_grad_norm_(self.weights, CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()

    @torch.no_grad()
    def apart(self) -> float:
        """How far the scores of the two ways differ."""
        self.judge.eval()
        scores = []
        for way in WAYS:
            self.take(way)
            scores.append(self.score(self.batches[0]))
        self.judge.train()
        return (scores[0] - scores[1]).abs().max().item()


def arithmetic(build: Callable[..., RewardModel], args: argparse.Namespace) -> dict[str, float]:
    """Operations of a pass over one pair by way: forward and backward, nothing computed again.

    All but attention grows with the tokens, and causal attention with the products of queries and keys.
    """
    prompt, response = args.prompt, args.response
    length = prompt + response
    network = partial(gpu.on_meta, partial(build, sharing="off", gradient_checkpointing=False))
    cost = cost_of(network, Work(1, length, autocast=True))
    tokens = (prompt + 2 * response) / length
    products = (prompt**2 + 2 * response * (2 * prompt + response)) / length**2
    return {
        "shared": cost.flops * tokens + cost.attention * products,
        "plain": 2 * (cost.flops + cost.attention),
    }


def forecasts(
    build: Callable[..., RewardModel], setting: Setting, hardware: Hardware, args: argparse.Namespace
) -> dict[str, Forecast]:
    """The plan of each way."""
    network = OneNetwork("model", partial(gpu.on_meta, partial(build, sharing="off")), setting.optimizer)
    works = {
        "shared": Work(args.pairs, args.prompt + 2 * args.response),
        "plain": Work(2 * args.pairs, args.prompt + args.response),
    }
    placement = Placement("single", 1, torch.bfloat16, True)
    return {
        way: forecast_training(network, placement, work, hardware, passes=args.passes)
        for way, work in works.items()
    }


def measure(name: str, source: str, args: argparse.Namespace) -> dict[str, Any]:
    """One setting in both ways."""
    setting = SETTINGS[name]
    options = {"weights": "random", "dtype": "bfloat16", "gradient_checkpointing": True, **setting.model}
    build: Callable[..., RewardModel] = partial(RewardModel, source, **options)
    hardware = Hardware(gpu_gb=setting.limit)
    plans, operations = forecasts(build, setting, hardware, args), arithmetic(build, args)
    plan = plans["shared"]
    print(
        f"{name}: {plan.rows * plan.length:,} tokens in a shared pass; by the plan {plan.budget or 0:,} fit "
        f"in {setting.limit:g} GB; {gpu.describe_plan(plan)}",
        flush=True,
    )
    if args.hold:
        gpu.hold_to(setting.limit)
    training = Training(build, setting, args)
    apart = training.apart()
    spent = take_turns({way: partial(training.step, way) for way in WAYS}, rounds=args.rounds)
    names = ("prompt", "response", "pairs", "attention")
    row: dict[str, Any] = {"setting": name, **{option: getattr(args, option) for option in names}}
    ceiling = 2 * (args.prompt + args.response) / (args.prompt + 2 * args.response)
    result = compare(spent, a="shared", b="plain", ceiling=ceiling)
    print(f"{name}, {describe(result)}; scores differ by {apart:.1e}", flush=True)
    for way, measured in zip(WAYS, (result["a"], result["b"]), strict=True):
        gpu.restart()
        training.step(way)
        peak, predicted = gpu.peak(), gpu.planned(plans[way], hardware)
        speed = args.pairs * args.passes / measured["seconds"]
        utilisation = operations[way] * speed / (args.peak_tflops * 1e12)
        print(
            f"{name}, {way}: {speed:.2f} pairs/s, MFU {utilisation:.3f}; "
            f"{gpu.describe_peak(peak, predicted, setting.limit)}",
            flush=True,
        )
        figures = {
            "pairs/s": speed,
            "MFU": utilisation,
            "peak GiB": peak.allocated,
            "reserved GiB": peak.reserved,
            "planned GiB": predicted,
            "planned / peak": predicted / peak.allocated,
        }
        for figure, value in figures.items():
            row.setdefault(f"{figure}, {' and '.join(WAYS)}", []).append(gpu.rounded(value, 3))
    return {**row, **result}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a forward pass")
    parser.add_argument("--passes", type=int, default=8, help="of a step of optimisation")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2"], help="of plain")
    parser.add_argument(
        "--peak-tflops", type=float, help="dense bfloat16 of the GPU; known of A100, H100, H200"
    )
    args = gpu.options(parser)
    args.peak_tflops = args.peak_tflops or next((PEAKS[part] for part in PEAKS if part in machine()), nan)
    if isnan(args.peak_tflops) and not args.tiny:
        parser.error(f"no peak arithmetic is known of {machine()}: give --peak-tflops")
    with args.device:
        check_attention(args.attention)
    results = []
    with tempfile.TemporaryDirectory() as source:
        gpu.write_model(source, tiny=args.tiny)
        for name in args.settings:
            results.append(measure(name, source, args))
            gc.collect()  # the model of a setting goes before that of the next comes
            gpu.restart()
    gpu.finish("gpu_reward", results, args)


if __name__ == "__main__":
    main()
