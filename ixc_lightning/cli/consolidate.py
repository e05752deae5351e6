# SPDX-License-Identifier: Apache-2.0
"""Sharded checkpoints, which each rank wrote its part of, as one file."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, EnumType
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from ixc_lightning.types import InputError

INDEX, REST = ".metadata", "meta.pt"
"""Torch's description of what the parts hold, and what Lightning saves besides weights and optimisers."""
OWN = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
"""Modules whose classes describe tensors and their places; the index is made of them."""
CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)
PLAIN = {("pathlib", "PosixPath"), ("torch", "Size"), ("torch.serialization", "_get_layout")}
"""What else the index names."""


def consolidate(checkpoint: str, file: str) -> None:
    """Make one file of a sharded checkpoint, to resume from on one device or with another strategy.

    Needs no GPU, and memory for weights and optimiser states as a whole.

    Args:
        checkpoint: the folder that fit wrote under FSDP.
        file: the file to write.

    Raises:
        InputError: there is no sharded checkpoint, or the file exists.
    """
    target = Path(file).expanduser()
    if target.exists():
        raise InputError(f"{file} exists: name a file that does not, or remove it")
    saved = read_sharded(Path(checkpoint).expanduser())
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        torch.save(saved, unfinished)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"wrote {target}")


@contextmanager
def as_file(checkpoint: Path, *, beside: Path) -> Iterator[Path]:
    """The checkpoint as one file: itself, or weights and settings of a sharded one while the block lasts.

    Args:
        checkpoint: either of the two.
        beside: what is written next to, on a disk with room for the weights.
    """
    if not checkpoint.is_dir():
        yield checkpoint
        return
    saved = read_sharded(checkpoint, only_weights=True)
    parent = beside.expanduser().absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix=".weights.") as folder:
        file = Path(folder) / "weights.ckpt"
        torch.save(saved, file)
        del saved
        yield file


def is_sharded(path: Path) -> bool:
    """Whether there is a sharded checkpoint of Lightning."""
    return (path / REST).is_file() and (path / INDEX).is_file()


def read_sharded(folder: Path, *, only_weights: bool = False) -> dict[str, Any]:
    """A sharded checkpoint, as Lightning writes it to one file where nothing is sharded.

    Lightning has a converter, but it unpickles whatever the folder holds. Here only tensors, plain data and
    torch's own index of them are read.

    Args:
        folder: the checkpoint.
        only_weights: leave the optimisers' states where they are.

    Raises:
        InputError: it is no sharded checkpoint, was not written to its end, or holds more than plain data.
    """
    if not is_sharded(folder):
        raise InputError(
            f"{folder} is no sharded checkpoint, or was not written to its end: give a folder that fit wrote "
            "under ModelParallelStrategy, with meta.pt and .metadata in it"
        )
    state: dict[str, Any] = {}
    planner = _Planner(keys={"state_dict"} if only_weights else None)
    try:
        with (folder / INDEX).open("rb") as stream:
            _Unpickler(stream).load()
        _load_state_dict(state, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
        rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, CheckpointException, EOFError, OSError, RuntimeError) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise InputError(
            f"{folder} cannot be read: {str(cause).splitlines()[0]}. It was not written to its end, or holds "
            "more than plain data"
        ) from error
    optimizers = sorted(name for name in state if name.startswith("optimizer_"))
    if optimizers:
        state["optimizer_states"] = [state.pop(name) for name in optimizers]
    return {**state, **rest}


class _Unpickler(pickle.Unpickler):
    """Takes what an index of torch is made of, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module in OWN or module == "torch" or (module, name) in PLAIN:
            found = super().find_class(module, name)
            is_description = isinstance(found, type) and found.__module__ in OWN
            if is_description or isinstance(found, CONSTANTS) or (module, name) in PLAIN:
                return found
        raise pickle.UnpicklingError(f"its index asks for {module}.{name}")


def _member(kind: Any, name: str) -> Enum:
    """What Python 3.11.0 to 3.11.3 save a constant of an enumeration as: ``getattr`` of class and name."""
    if not isinstance(kind, EnumType):
        raise pickle.UnpicklingError(f"its index asks for {kind}.{name}")
    return kind[name]


class _Planner(_EmptyStateDictLoadPlanner):
    """Looks at what is no tensor, such as a learning rate, before it is unpickled."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take one such value."""
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)
