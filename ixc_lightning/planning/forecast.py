# SPDX-License-Identifier: Apache-2.0
"""Memory of one GPU in each phase of training, and the time of a step, put together from parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from ixc_lightning.models.adapters import is_adapter
from ixc_lightning.planning.rehearsal import Cost, Work, backbone_of, cost_of
from ixc_lightning.planning.states import cache_bytes, is_foreach, optimiser_bytes, weight_bytes

GIB = 2**30
IN_FLIGHT = 3
"""Layers that FSDP2 holds whole at a time: the present one, the next one, and the buffer of arrivals."""


@dataclass(frozen=True)
class Hardware:
    """The GPUs that a plan is for.

    Args:
        gpu_gb: memory of a GPU, GiB.
        world: number of GPUs; null takes that of the recipe.
        peak_tflops: dense bfloat16 arithmetic of a GPU, 10¹² a second; 312 is an A100, 989 an H100.
        memory_tbs: memory traffic of a GPU, 10¹² bytes a second; 2.0 is an A100, 3.35 an H100.
        efficiency: share of both that a run reaches.
        reserve_gb: for the CUDA context, workspaces of libraries and fragmentation, GiB.
    """

    gpu_gb: float = 80.0
    world: int | None = None
    peak_tflops: float = 312.0
    memory_tbs: float = 2.0
    efficiency: float = 0.4
    reserve_gb: float = 2.0

    def seconds(self, operations: float) -> float:
        """Time of so many multiplications and additions."""
        return operations / (self.peak_tflops * 1e12 * self.efficiency)


class Placement(NamedTuple):
    """How networks lie on the GPUs.

    Attributes:
        kind: ``single`` and ``ddp`` hold all of it on each GPU, ``sharded`` a part.
        world: number of GPUs.
        compute: dtype of activations.
        autocast: computes in bfloat16 over the weights' own dtype.
    """

    kind: Literal["single", "ddp", "sharded"]
    world: int
    compute: torch.dtype
    autocast: bool


class OneNetwork(NamedTuple):
    """A network of the run.

    Attributes:
        name: of its role.
        build: makes it on the meta device.
        optimizer: what trains it; None if it only judges.
        is_guest: whether it adds adapters and a head alone to the base of the policy.
    """

    name: str
    build: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    is_guest: bool = False


class Phase(NamedTuple):
    """What is in memory at the fullest moment of a phase, bytes by kind."""

    name: str
    kinds: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes of all kinds."""
        return sum(self.kinds.values())


class Forecast(NamedTuple):
    """What a run takes of each GPU.

    Attributes:
        phases: memory of each.
        seconds: of one optimiser step, or one iteration of reinforcement learning, by phase.
        rows: sequences of a forward pass.
        length: tokens of each.
        budget: most tokens of a forward pass that fit, in sequences of that length; None if one does not.
    """

    phases: list[Phase]
    seconds: dict[str, float]
    rows: int
    length: int
    budget: int | None

    @property
    def peak(self) -> float:
        """Bytes at the fullest moment."""
        return max(phase.total for phase in self.phases)


class _Standing(NamedTuple):
    """What a network keeps on a GPU all the time, and what it takes at times; bytes."""

    trained: float
    frozen: float
    optimiser: float
    gradients: float
    gathered: float
    whole: float
    exchange: float
    copies: float


def forecast_training(
    network: OneNetwork, placement: Placement, work: Work, hardware: Hardware, *, passes: int
) -> Forecast:
    """Of fine-tuning and reward training.

    Args:
        network: the model.
        placement: how it lies on the GPUs.
        work: of one pass.
        hardware: the GPUs.
        passes: forward and backward passes of an optimiser step.
    """
    standing = _standing(network, placement)
    work = _on(placement, work._replace(accumulates=passes > 1))
    cost, slope = _costs(network, placement, work)
    phases = [
        _phase("train", [standing], hardware, learning=_beside(cost, standing, work), active=standing),
        _phase("step", [standing], hardware, learning=0.0, step=True),
    ]
    seconds = {"train": passes * hardware.seconds(cost.flops + cost.attention)}
    room = hardware.gpu_gb * GIB - phases[0].total
    return Forecast(phases, seconds, work.rows, work.length, _budget(work, room, slope))


def forecast_rl(
    networks: Sequence[OneNetwork],
    placement: Placement,
    work: Work,
    hardware: Hardware,
    *,
    answers: int,
    at_once: int,
    minibatch: int,
    epochs: int,
) -> Forecast:
    """Of an iteration of reinforcement learning.

    Args:
        networks: the policy first; ``critic`` is trained too, the others judge.
        placement: how they lie on the GPUs.
        work: of one pass of the policy: ``rows_at_once`` answers with their prompts.
        hardware: the GPUs.
        answers: of one GPU in an iteration.
        at_once: that are written at a time.
        minibatch: of one optimiser step.
        epochs: passes over the answers.
    """
    standings = [_standing(network, placement) for network in networks]
    policy, config = networks[0], backbone_of(networks[0].build()).config
    work = _on(placement, work._replace(accumulates=minibatch > work.rows))
    asks = {"score": work._replace(predicted=0, loss="score"), "logprobs": work}
    reads, learns, slopes = [], [], []
    for network, standing in zip(networks, standings, strict=True):
        ask = asks["logprobs" if network.name in ("policy", "reference") else "score"]
        reads.append((cost_of(_as_computed(network, placement), ask._replace(learns=False)), standing))
        if network.optimizer is not None:
            cost, slope = _costs(network, placement, ask)
            learns.append((cost, standing, _beside(cost, standing, ask)))
            slopes.append(slope)
    cache = float(cache_bytes(config, tokens=at_once * work.length, dtype=placement.compute))
    read, reader = max(reads, key=lambda one: one[0].peak + one[1].gathered)
    _, learner, beside = max(learns, key=lambda one: one[2] + one[1].gathered + one[1].exchange)
    phases = [
        _phase("answer", standings, hardware, gathered=standings[0].whole, cache=cache),
        _phase("read", standings, hardware, gathered=reader.gathered, activations=read.peak),
        _phase("learn", standings, hardware, learning=beside, active=learner),
        _phase("step", standings, hardware, learning=0.0, step=True),
    ]
    parts = answers / work.rows
    own = reads[0][0]
    prompts = (own.flops + own.attention) * parts * (work.length - work.predicted) / work.length
    weights = weight_bytes([policy.build()], dtype=None if placement.kind != "sharded" else placement.compute)
    steps = ceil(answers / at_once) * work.predicted
    traffic = steps * (weights + cache) / (hardware.memory_tbs * 1e12 * hardware.efficiency)
    seconds = {
        "answer": hardware.seconds(prompts) + traffic,
        "read": hardware.seconds(parts * sum(cost.flops + cost.attention for cost, _ in reads)),
        "learn": hardware.seconds(epochs * parts * sum(cost.flops + cost.attention for cost, *_ in learns)),
    }
    room = hardware.gpu_gb * GIB - phases[2].total
    return Forecast(phases, seconds, work.rows, work.length, _budget(work, room, max(slopes)))


def _standing(network: OneNetwork, placement: Placement) -> _Standing:
    role = network.build()
    backbone = backbone_of(role)
    named = dict(role.named_parameters())
    if network.is_guest:  # its base is the policy's
        inner = "" if role is backbone else "backbone."
        named = {n: w for n, w in named.items() if is_adapter(n) or not n.startswith(inner)}
    trained = [weight for weight in named.values() if weight.requires_grad] if network.optimizer else []
    own = sum(weight.nbytes for weight in trained)
    everything = sum(w.nbytes for w in named.values()) if network.is_guest else weight_bytes([role])
    states = optimiser_bytes(network.optimizer, trained) if network.optimizer else 0
    copies = own if network.optimizer and is_foreach(network.optimizer) else 0
    if placement.kind != "sharded":
        exchange = own if placement.kind == "ddp" else 0
        return _Standing(*map(float, (own, everything - own, states, own, 0, 0, exchange, copies)))
    parts = placement.world
    modules = backbone.role_modules()
    tower = [*modules["vision"], *modules["projector"]]
    is_frozen = not any(w.requires_grad for module in tower for w in module.parameters())
    towers = tower if is_frozen and backbone.frozen_tower == "whole" else []
    layer = max(
        (weight_bytes([one], dtype=placement.compute) for one in backbone.decoder_layers()), default=0
    )
    layers = weight_bytes(backbone.decoder_layers(), dtype=placement.compute)
    beside = weight_bytes(towers, dtype=placement.compute)
    root = weight_bytes([role], dtype=placement.compute) - layers - beside
    sharded = everything - weight_bytes(towers)
    # gradients of a layer in the dtype of the computation, and in float32 on their way to the other ranks
    both = 1 + 4 / placement.compute.itemsize
    return _Standing(
        own / parts,
        (sharded - own) / parts + beside,
        states / parts,
        own / parts,
        float(root + IN_FLIGHT * layer),
        float(root + layers),
        max(layer * both, root * both - IN_FLIGHT * layer) if trained else 0.0,
        copies / parts,
    )


def _phase(
    name: str,
    standings: Sequence[_Standing],
    hardware: Hardware,
    *,
    learning: float | None = None,
    active: _Standing | None = None,
    gathered: float = 0.0,
    activations: float = 0.0,
    cache: float = 0.0,
    step: bool = False,
) -> Phase:
    """A phase; ``learning`` is what the active network needs beside its gradients."""
    is_learning = learning is not None
    return Phase(
        name,
        {
            "trained weights": sum(one.trained for one in standings),
            "frozen weights": sum(one.frozen for one in standings),
            "optimiser states": sum(one.optimiser for one in standings),
            "gradients": sum(one.gradients for one in standings) if is_learning else 0.0,
            "gathered layers": active.gathered if active else gathered,
            "exchange of gradients": active.exchange if active else 0.0,
            "activations": learning or activations,
            "keys and values": cache,
            "copies of the optimiser": max(one.copies for one in standings) if step else 0.0,
            "reserve": hardware.reserve_gb * GIB,
        },
    )


def _beside(cost: Cost, standing: _Standing, work: Work) -> float:
    """Bytes of a pass beside the gradients, which are counted for themselves."""
    made = 0.0 if work.is_sharded or work.accumulates else standing.gradients
    return max(cost.peak - made, cost.kept)


def _on(placement: Placement, work: Work) -> Work:
    return work._replace(is_sharded=placement.kind == "sharded", autocast=placement.autocast)


def _costs(network: OneNetwork, placement: Placement, work: Work) -> tuple[Cost, float]:
    """What a pass costs, and how much more memory each further row takes."""
    build = _as_computed(network, placement)
    one, two = (cost_of(build, work._replace(rows=rows)) for rows in (1, 2))
    slope = two.peak - one.peak
    rows = work.rows - 1
    return Cost(*(a + (b - a) * rows for a, b in zip(one, two, strict=True))), slope


def _as_computed(network: OneNetwork, placement: Placement) -> Callable[[], nn.Module]:
    """The network in the dtype that its gathered weights have."""

    def build() -> nn.Module:
        role = network.build()
        if placement.kind == "sharded":
            for weight in backbone_of(role).parameters():
                if weight.dtype == torch.float32:
                    weight.data = weight.data.to(placement.compute)
        return role

    return build


def _budget(work: Work, room: float, slope: float) -> int | None:
    rows = work.rows + room / slope
    return int(rows * work.length) if rows >= 1 else None


def on(hardware: Hardware, world: int) -> Hardware:
    """The hardware with a number of GPUs where it names none."""
    return hardware if hardware.world else replace(hardware, world=world)
