# SPDX-License-Identifier: Apache-2.0
"""To Hugging Face folders: weights, configuration and processor together, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ixc_lightning.processors import load_processor
from ixc_lightning.types import InputError


@runtime_checkable
class Saveable(Protocol):
    """A model that writes itself as transformers does: a ``Backbone`` or a ``RewardModel``."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and configuration."""


def export_folder(model: Saveable, processor: str, folder: str | Path) -> Path:
    """Write a model and its processor as one Hugging Face folder, and give its path.

    The folder appears under its name only when it is complete; one that stood there before is replaced.

    Args:
        model: what to write; a sharded one inside ``whole``.
        processor: hub id or folder of the processor that the model was trained with.
        folder: where to write; ``~`` is expanded.

    Raises:
        InputError: there is a file of that name, or the processor cannot be loaded.
    """
    target = Path(folder).expanduser().absolute()
    if target.is_file():
        raise InputError(f"{folder} is a file: name a folder to export to")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(unfinished)
        load_processor(processor).save_pretrained(unfinished)
        unfinished.chmod(0o755)
        _replace(target, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Give the first rank every parameter of a sharded model in full, on the CPU, as long as the block lasts.

    All ranks must enter together. The parameters are the master weights, in the dtype that they are trained
    in. A model that is not sharded stays as it is.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root may still be gathered, in the dtype of the computation
    shards = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter.data, DTensor)
    ]
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    full: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for _, _, parameter in shards:
        if parameter not in full:
            shard = parameter.detach()
            assert isinstance(shard, DTensor)
            tensor = shard.full_tensor()  # by all ranks
            full[parameter] = nn.Parameter(tensor.cpu(), requires_grad=False) if is_first else parameter
    try:
        for module, name, parameter in shards:
            setattr(module, name, full[parameter])
        yield
    finally:
        for module, name, parameter in shards:
            setattr(module, name, parameter)


def _replace(target: Path, new: Path) -> None:
    """Rename ``new`` to ``target``, moving aside what is there: a folder cannot take a full one's name."""
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        target.rename(old / target.name)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
