# SPDX-License-Identifier: Apache-2.0
"""The command that says whether a recipe fits on GPUs, and how long a step takes; it reads no weights."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from ixc_lightning.cli.trainer import CLI, run_trainer
from ixc_lightning.models.adapter_files import saved_adapter
from ixc_lightning.models.adapters import LoRA
from ixc_lightning.modules import RewardModule, SFTModule
from ixc_lightning.modules.on_policy import OnPolicyModule
from ixc_lightning.planning import Forecast, Hardware, OneNetwork, Work, forecast_rl, forecast_training
from ixc_lightning.planning.forecast import GIB, Placement
from ixc_lightning.types import InputError

MODELS = ("Backbone", "RewardModel", "Critic")
RESPONSE = 512
"""Tokens of a response in training data, where nothing says how many there are."""


@dataclass(frozen=True)
class Asked:
    """What is asked for besides the hardware.

    Args:
        tokens: of a prompt and one response; null is ``data.max_tokens``, and in reinforcement learning
            that of a prompt and ``model.sampling.max_tokens``.
        response: tokens of a response in fine-tuning and reward training.
        json: print one line of JSON.
    """

    tokens: int | None = None
    response: int = RESPONSE
    json: bool = False


class PlanCLI(CLI):
    """A recipe, as ``fit`` reads it, with the hardware; neither a Trainer nor data are made."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the hardware."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Hardware, as_group=True)
        parser.add_class_arguments(Asked, as_group=True)

    def before_instantiate_classes(self) -> None:
        """Have every network built from its config alone, with kernels that need no GPU."""
        self.notes: list[str] = []
        roles = list(_roles(self.config.model))
        for number, role in enumerate(roles):
            self._without_weights(role, roles[0] if number else None)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Nothing: its devices need not be here."""
        return None

    def _without_weights(self, role: Namespace, policy: Namespace | None) -> None:
        source = os.path.expanduser(role.source)
        if policy is not None and not os.path.isdir(source) and source.startswith("outputs/"):
            self.notes.append(f"{role.source} is not there yet: planned as if trained from {policy.source}")
            role.source = policy.source
            role.adapter = role.get("adapter") or policy.get("adapter")
        elif saved := saved_adapter(source, beside=None):
            role.source, role.quantisation = saved.base, role.get("quantisation") or saved.quantisation
            with open(os.path.join(source, "adapter_config.json")) as file:
                lora = json.load(file)
            role.adapter = Namespace(vars(LoRA(rank=lora["r"], alpha=lora["lora_alpha"])))
        if policy is not None and policy.get("adapter"):  # it speaks through the policy's network
            role.gradient_checkpointing = policy.get("gradient_checkpointing", False)
        role.weights, role.attention = "random", "sdpa"
        for option in ("liger", "compile"):
            if option in role:
                role[option] = False


def plan(words: list[str]) -> None:
    """Print the plan of a recipe.

    Raises:
        InputError: the recipe trains nothing that can be planned, or does not say how long its sequences are.
    """
    with _errors_alone(logging.getLogger("ixc_lightning.models.packing")):
        cli = run_trainer(words, cli=PlanCLI, run=False)
        assert isinstance(cli, PlanCLI)
        settings = cli.config
        hardware = Hardware(**{name: settings[name] for name in Hardware.__dataclass_fields__})
        asked = Asked(**{name: settings[name] for name in Asked.__dataclass_fields__})
        placement = _placement(cli.model, settings.trainer, hardware)
        forecast = _forecast(cli, placement, hardware, asked)
    shown = _as_json(forecast, hardware, placement, cli.notes) if asked.json else None
    print(json.dumps(shown) if shown else _as_table(forecast, hardware, placement, cli.notes))


@contextmanager
def _errors_alone(logger: logging.Logger) -> Iterator[None]:
    """Keep back what ``logger`` warns of: without weights nothing can be shared, but in the run it is."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forecast(cli: PlanCLI, placement: Placement, hardware: Hardware, asked: Asked) -> Forecast:
    module, data, trainer = cli.model, cli.config.data.init_args, cli.config.trainer
    if isinstance(module, OnPolicyModule):
        return _forecast_rl(module, data, placement, hardware, asked)
    if not isinstance(module, (RewardModule, SFTModule)):
        raise InputError(
            f"{type(module).__name__} trains no network that can be planned: give a recipe of SFTModule, "
            "RewardModule, PPOModule, RLOOModule or GRPOModule"
        )
    length = asked.tokens or data.get("max_tokens")
    if not length:
        raise InputError(
            "the recipe does not say how long its sequences are: give --tokens or --data.max_tokens"
        )
    if asked.response >= length:
        raise InputError(f"--response is {asked.response}, but must be below the {length} of a sequence")
    records, passes = data.batch_size, trainer.accumulate_grad_batches or 1
    network = OneNetwork("model", partial(_on_meta, module.build), module.optimizer)
    if isinstance(module, SFTModule):
        work = Work(records, length, predicted=asked.response, loss="sft")
    elif getattr(network.build(), "sharing", "off") == "auto":
        work = Work(records, length + asked.response)  # the prompt once, both responses
    else:
        work = Work(2 * records, length)
    if budget := data.get("token_budget"):
        work = work._replace(rows=max(1, budget // work.length))
    return forecast_training(network, placement, work, hardware, passes=passes)


def _forecast_rl(
    module: OnPolicyModule, data: Namespace, placement: Placement, hardware: Hardware, asked: Asked
) -> Forecast:
    answer = module.sampling.max_tokens
    length = asked.tokens or (data.max_tokens and data.max_tokens + answer)
    if not length or length <= answer:
        raise InputError(
            "no length of prompts is known: give --data.max_tokens, or --tokens of a prompt "
            f"with its answer of up to {answer} tokens"
        )
    build = partial(_on_meta, module.build_policy)
    is_lent = build().adapter is not None
    networks = [OneNetwork("policy", build, module.optimizer)]
    networks.append(OneNetwork("reference", build, is_guest=is_lent))
    if module.build_reward_model is not None:
        networks.append(
            OneNetwork("reward_model", partial(_on_meta, module.build_reward_model), is_guest=is_lent)
        )
    if module.build_critic is not None:
        critic = partial(_on_meta, module.build_critic)
        networks.append(OneNetwork("critic", critic, module.critic_optimizer, is_lent))
    answers = data.batch_size * module.sampling.n
    rows = min(module.rows_at_once, module.minibatch_size, answers)
    return forecast_rl(
        networks,
        placement,
        Work(rows, length, predicted=answer, loss="logprobs"),
        hardware,
        answers=answers,
        at_once=min(getattr(module.engine, "max_rows", None) or answers, answers),
        minibatch=module.minibatch_size,
        epochs=module.epochs,
    )


def _placement(module: Any, trainer: Namespace, hardware: Hardware) -> Placement:
    devices = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
    world = hardware.world or devices * trainer.num_nodes
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else trainer.strategy.class_path
    is_autocast = str(trainer.precision) == "bf16-mixed"
    if "ModelParallel" in strategy or "fsdp" in strategy.lower():
        compute = getattr(torch, getattr(module, "compute_dtype", "bfloat16"))
        return Placement("sharded", world, compute, False)
    dtype = torch.bfloat16 if is_autocast or "bf16" in str(trainer.precision) else torch.float32
    return Placement("ddp" if world > 1 else "single", world, dtype, is_autocast)


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _roles(settings: Any) -> Any:
    """The init arguments of every network in a module's settings, the policy's first."""
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if not isinstance(settings, dict):
        return
    if str(settings.get("class_path", "")).rsplit(".", 1)[-1] in MODELS:
        yield settings["init_args"]
        return
    for name in sorted(settings, key=lambda name: name != "policy"):
        yield from _roles(settings[name])


def _as_json(
    forecast: Forecast, hardware: Hardware, placement: Placement, notes: list[str]
) -> dict[str, Any]:
    return {
        "fits": forecast.peak <= hardware.gpu_gb * GIB,
        "peak_gib": round(forecast.peak / GIB, 3),
        "gpu_gib": hardware.gpu_gb,
        "gpus": placement.world,
        "phases": {
            one.name: {kind: round(size / GIB, 3) for kind, size in one.kinds.items()}
            for one in forecast.phases
        },
        "rows": forecast.rows,
        "tokens_per_row": forecast.length,
        "token_budget": forecast.budget,
        "seconds": {name: round(value, 2) for name, value in forecast.seconds.items()},
        "notes": notes,
    }


def _as_table(forecast: Forecast, hardware: Hardware, placement: Placement, notes: list[str]) -> str:
    phases = forecast.phases
    lines = [f"GiB of each GPU, {placement.world} in all, {placement.kind}"]
    lines.append(f"{'':<26}" + "".join(f"{one.name:>10}" for one in phases))
    for kind in phases[0].kinds:
        if any(one.kinds[kind] for one in phases):
            lines.append(f"{kind:<26}" + "".join(f"{one.kinds[kind] / GIB:>10.2f}" for one in phases))
    lines.append(f"{'total':<26}" + "".join(f"{one.total / GIB:>10.2f}" for one in phases))
    fullest, most = max(phases, key=lambda one: one.total), hardware.gpu_gb * GIB
    verb = "fits" if forecast.peak <= most else "DOES NOT FIT"
    lines += ["", f"{verb} in {hardware.gpu_gb:g} GiB: {fullest.name} takes {forecast.peak / GIB:.1f}"]
    row = f"{forecast.rows} x {forecast.length:,} tokens in a forward pass"
    if forecast.budget is None:
        lines.append(f"{row}; not even one such sequence fits")
    else:
        lines.append(f"{row}; up to {forecast.budget:,} would fit")
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in forecast.seconds.items())
    lines.append(f"seconds of a step: {sum(forecast.seconds.values()):.1f} ({parts})")
    lines.append(
        f"  at {hardware.peak_tflops:g} TFLOP/s and {hardware.memory_tbs:g} TB/s, "
        f"of which {hardware.efficiency:.0%} are reached"
    )
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])
