# SPDX-License-Identifier: Apache-2.0
"""PPO at 7B on one GPU, four roles on one 4-bit base: time of each phase, and memory beside the plan.

``python benchmarks/gpu_ppo.py`` takes about a quarter of an hour and needs one GPU of 24 GB, and ``pip
install 'ixc-lightning[quant]'``. ``--tiny`` runs the same code on any machine. ``--help`` tells what can be
changed.

The setting is that of ``recipes/single_gpu/ppo.yaml``, with fewer prompts: policy, reference, critic and
reward model are adapters over one base in 4 bits, activations are computed again in the backward pass, and 8
answers are written at a time. The model has the shape of Qwen2.5-VL-7B and random weights, and every answer
has its full length. Iterations of one run take turns:

shared  A prompt is read once for all its answers, by generation and by every role.
off     ``generate`` answers copies of the prompt, and every role reads the prompt with each answer.

The answers of one forward pass share their prompt, so with the recipe's one row sharing shows in generation
alone; four rows are measured, too. Printed are, for each number of rows, the ratio of the times of an
iteration, whose ceiling is the ratio of the tokens of a forward pass, generation aside; the peak memory of
building the networks, which is not planned; and for each way the seconds of each phase, the tokens of answers
a second, and the peak that ``ixc_lightning.planning`` predicts, as ``plan`` does, beside the measured one,
whole and by phase. The plan reckons without sharing. ``--hold`` lets PyTorch have no more memory than a card
of 24 GB; without it what is reserved may be more than is needed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import _gpu as gpu
import lightning as L
import torch
from _timing import Spent, compare, describe
from torch import nn
from torch.optim import AdamW

from ixc_lightning.datamodules import PromptDataModule
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.adapters import LoRA
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.one_base import Voice
from ixc_lightning.modules import FixedKL, PPOModule
from ixc_lightning.modules.roles import backbone_of
from ixc_lightning.planning import Forecast, Hardware, OneNetwork, Work, forecast_rl
from ixc_lightning.planning.forecast import Placement
from ixc_lightning.rollout import Sampling, TransformersEngine
from ixc_lightning.types import PromptBatch

WAYS = ("shared", "off")
LIMIT = 24.0
AT_ONCE = 8
"""Answers that are written at a time."""
PHASES = {"roll_out": "answer", "score": "read", "experience": "read", "learn": "learn"}
"""What the plan calls the parts of an iteration."""
OPTIMIZERS = {
    "policy": partial(AdamW, lr=5e-5, weight_decay=0.0, betas=(0.9, 0.95)),
    "critic": partial(AdamW, lr=1e-4, weight_decay=0.0, betas=(0.9, 0.95)),
}


def measured(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which notes the peak of its memory by phase."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        gpu.restart(empty=False)
        result = method(self, *args, **kwargs)
        phase, peak = PHASES[method.__name__], gpu.peak()
        before = self.peaks.get(phase, peak)
        self.peaks[phase] = gpu.Peak(*map(max, before, peak))
        return result

    return run


class Turns(PPOModule):
    """Iterations that share and do not share in turn.

    Attributes:
        building: peak of the building of all networks.
        spent: time of each iteration by way.
        phases: seconds of its phases.
        most: peaks of its phases.
    """

    roll_out, score = measured(PPOModule.roll_out), measured(PPOModule.score)
    experience, learn = measured(PPOModule.experience), measured(PPOModule.learn)

    def on_fit_start(self) -> None:
        """Make sure that there is something to compare: one base, and prompts that can be shared."""
        super().on_fit_start()
        self.building = gpu.peak()
        for name, role in self.roles().items():
            if not isinstance(backbone_of(role), Voice):
                raise RuntimeError(f"the {name} has a network of its own, so this is not one base")
            if not (role if isinstance(role, RewardModel) else backbone_of(role)).shares:
                raise RuntimeError(f"the {name} does not share prompts, so there is nothing to compare")
        self.spent: dict[str, list[Spent]] = {way: [] for way in WAYS}
        self.phases: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        self.most: dict[str, dict[str, gpu.Peak]] = {}

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """One iteration, of the way whose turn it is; the order turns round by round."""
        number, turn = divmod(self.trainer.global_step, len(WAYS))
        way = WAYS[:: 1 if number % 2 else -1][turn]
        self.take(way)
        gpu.restart()
        self.peaks: dict[str, gpu.Peak] = {}
        wall, cpu = perf_counter(), process_time()
        out = super().training_step(batch, batch_idx)
        if number:  # the first round warms up
            self.spent[way].append(Spent(perf_counter() - wall, process_time() - cpu))
            self.phases[way].append(dict(self.seconds))
        self.most[way] = self.peaks
        return out

    def take(self, way: str) -> None:
        """Share prompts, or do not, from now on."""
        self.engine.sharing = "auto" if way == "shared" else "off"
        for role in self.roles().values():
            for part in (role, backbone_of(role)):
                part.shares = way == "shared"


def alike(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A network whose random weights are those of all others: only equal bases can be shared."""
    torch.manual_seed(0)
    return make(*args, **kwargs)


def networks(source: str) -> dict[str, Callable[..., Any]]:
    """How every role is built."""
    options: dict[str, Any] = {"weights": "random", "dtype": "bfloat16", "gradient_checkpointing": True}
    options |= {"quantisation": "nf4", "adapter": LoRA(rank=16, alpha=32.0)}
    return {
        "policy": partial(alike, Backbone, source, head=True, **options),
        "reward_model": partial(alike, RewardModel, source, **options),
        "critic": partial(alike, Critic, source, **options),
    }


def write_prompts(folder: Path, length: int, count: int) -> None:
    """Write as many prompts of so many tokens: words of one token each, between the template's three."""
    text = " ".join(["number"] * (length - 3))

    def sample(number: int) -> Sample:
        messages = [{"role": "user", "content": text}]
        record = {"id": str(number), "source": "benchmark", "domain": "reading", "messages": messages}
        return Sample(f"{number:06d}", record, {})

    write_shards(map(sample, range(count)), folder, kind="prompt")


def iterate(folder: Path, rows: int, args: argparse.Namespace) -> Turns:
    """A warm-up and the rounds, with so many rows in a forward pass; the module behind them."""
    source = str(folder / "model")
    module = Turns(
        **networks(source),
        optimizer=OPTIMIZERS["policy"],
        critic_optimizer=OPTIMIZERS["critic"],
        kl=FixedKL(0.05),
        sampling=Sampling(n=args.samples, min_tokens=args.response, max_tokens=args.response),
        engine=TransformersEngine(max_rows=AT_ONCE),
        minibatch_size=args.minibatch,
        rows_at_once=rows,
    )
    trainer = L.Trainer(
        accelerator="gpu" if args.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=len(WAYS) * (args.rounds + 1),
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = PromptDataModule(source, train=str(folder / "prompts"), batch_size=args.prompts)
    trainer.fit(module, data)
    return module


def forecast(source: str, rows: int, hardware: Hardware, args: argparse.Namespace) -> Forecast:
    """The plan of an iteration."""
    made = networks(source)
    made["reward_model"] = partial(made["reward_model"], sharing="off")  # cannot be found out without weights
    made = {name: partial(gpu.on_meta, build) for name, build in made.items()}
    roles = [
        OneNetwork("policy", made["policy"], OPTIMIZERS["policy"]),
        OneNetwork("reference", made["policy"], is_guest=True),
        OneNetwork("reward_model", made["reward_model"], is_guest=True),
        OneNetwork("critic", made["critic"], OPTIMIZERS["critic"], is_guest=True),
    ]
    answers = args.prompts * args.samples
    return forecast_rl(
        roles,
        Placement("single", 1, torch.bfloat16, True),
        Work(rows, args.prompt + args.response, predicted=args.response, loss="logprobs"),
        hardware,
        answers=answers,
        at_once=min(AT_ONCE, answers),
        minibatch=args.minibatch,
        epochs=1,
    )


def measure(folder: Path, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both ways with so many rows in a forward pass."""
    hardware = Hardware(gpu_gb=LIMIT)
    plan = forecast(str(folder / "model"), rows, hardware, args)
    by_phase = {one.name: one.total / gpu.GIB - hardware.reserve_gb for one in plan.phases}
    by_phase["learn"] = max(by_phase["learn"], by_phase.pop("step"))
    print(f"{rows} rows: {gpu.describe_plan(plan)}", flush=True)
    gpu.restart()
    module = iterate(folder, rows, args)
    answers, n = args.prompts * args.samples, min(rows, args.samples)
    ceiling = n * (args.prompt + args.response) / (args.prompt + n * args.response)
    result = compare(module.spent, a="shared", b="off", ceiling=ceiling)
    print(f"{rows} rows, {describe(result)}; building took {module.building.allocated:.2f} GiB", flush=True)
    row: dict[str, Any] = {"rows": rows, "prompt": args.prompt, "response": args.response, "answers": answers}
    predicted = gpu.planned(plan, hardware)
    row["planned GiB"] = gpu.rounded(predicted)
    for way in WAYS:
        seconds = {
            method: median(one[method] for one in module.phases[way]) for method in module.phases[way][0]
        }
        speed = answers * args.response / seconds["roll_out"]
        most = gpu.Peak(*map(max, *module.most[way].values()))
        times = ", ".join(f"{method} {spent:.2f} s" for method, spent in seconds.items())
        phases = ", ".join(
            f"{phase} {peak.allocated:.2f} of {by_phase[phase]:.2f}"
            for phase, peak in module.most[way].items()
        )
        print(
            f"{rows} rows, {way}: {times}; {speed:.1f} tokens/s of answers; "
            f"{gpu.describe_peak(most, predicted, LIMIT)}; measured of planned: {phases}",
            flush=True,
        )
        figures = {
            **{f"{method} s": spent for method, spent in seconds.items()},
            "tokens/s": speed,
            "peak GiB": most.allocated,
            "reserved GiB": most.reserved,
            "planned / peak": predicted / most.allocated,
        }
        for figure, value in figures.items():
            row.setdefault(f"{figure}, {' and '.join(WAYS)}", []).append(gpu.rounded(value))
    return {**row, **result}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often they take turns")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="answers in a forward pass")
    parser.add_argument("--prompts", type=int, default=4, help="of an iteration")
    parser.add_argument("--samples", type=int, default=4, help="answers of a prompt")
    parser.add_argument("--minibatch", type=int, default=16, help="answers of a step of optimisation")
    args = gpu.options(parser)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if args.hold:
        gpu.hold_to(LIMIT)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gpu.write_model(str(folder / "model"), tiny=args.tiny)
        write_prompts(folder / "prompts", args.prompt, args.prompts)
        for rows in args.rows:
            results.append(measure(folder, rows, args))
            gc.collect()  # one base goes before the next comes
    gpu.finish("gpu_ppo", results, args)


if __name__ == "__main__":
    main()
