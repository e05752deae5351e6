# SPDX-License-Identifier: Apache-2.0
"""What the modules do alike around the optimiser and the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from ixc_lightning.types import InputError

FLAT = "_fsdp_flattened"
"""How torch's first FSDP marks a parameter of which each rank holds some numbers, as an ordinary tensor."""


def optimise(
    parameters: Iterable[nn.Parameter], optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None
) -> OptimizerLRSchedulerConfig:
    """The optimiser over all parameters that are trained, and its schedule, stepped once per optimiser step.

    Raises:
        InputError: everything is frozen, or the optimiser cannot step sharded weights.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise InputError(
            "freeze leaves nothing to train: take a role out of it, or give adapter where quantisation keeps "
            "the language model as it is"
        )
    built = optimizer(trained)
    name = f"{type(built).__module__}.{type(built).__name__}"
    if name.startswith("bitsandbytes.") and any(isinstance(weight.data, DTensor) for weight in trained):
        raise InputError(
            f"{name} cannot step weights that are sharded over ranks: name torchao.optim.AdamW8bit as the "
            "optimizer, or give trainer.strategy auto or ddp"
        )
    if scheduler is None:
        return {"optimizer": built}
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler(built), "interval": "step"}}


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, of all ranks where they are sharded, before clipping."""
    known = [parameter for parameter in parameters if parameter.requires_grad]
    flat = [parameter for parameter in known if getattr(parameter, FLAT, False)]
    rest = [parameter for parameter in known if not getattr(parameter, FLAT, False)]
    norm = get_total_norm([p.grad for p in rest if p.grad is not None])
    if not flat:
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
    own = get_total_norm([p.grad for p in flat if p.grad is not None]).to(flat[0].device)
    each = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(each, own)
    return torch.stack([*each, norm.to(own)]).norm()


def check_state(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the module that is to take it.

    A checkpoint without weights passes: a sharding strategy has loaded them, and checked them, by then.

    Raises:
        InputError: names or shapes differ, as they do for another architecture.
    """
    if "state_dict" not in checkpoint:
        return
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    wrong = [name for name in own.keys() & given.keys() if own[name] != given[name]]
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "unknown": sorted(given.keys() - own.keys()),
        "of another shape": sorted(wrong),
    }
    found = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in problems.items() if names]
    if found:
        raise InputError(
            f"the checkpoint is of another architecture than the model: {', '.join(found)}. "
            "Name the model that it was trained from as model.source, or give another checkpoint"
        )


def without_callables(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are plain data: all under the command line, fewer where Python gave objects."""
    return {name: value for name, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
