# SPDX-License-Identifier: Apache-2.0
"""Weights for a network that was built without them, each rank's part alone, straight from the files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.distributed.sharding_utils import DtensorShardOperation
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)
from transformers.utils.hub import get_checkpoint_shard_files
from transformers.utils.loading_report import LoadStateDictInfo

from ixc_lightning.models.adapters import is_adapter
from ixc_lightning.models.fresh_weights import draw
from ixc_lightning.models.internlm_xcomposer2.release import ReleasedCheckpoint, is_released
from ixc_lightning.models.loading import LateWeights, check_report, late_weights_of
from ixc_lightning.models.quantisation import pack, quantised_kinds
from ixc_lightning.types import InputError

_BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""The part of a weight's name that all weights of its block have in common."""


@torch.no_grad()
def load_late(root: nn.Module, network: PreTrainedModel, device: torch.device) -> None:
    """Load what a network was built without (``loading.weights_later``); nothing if it has its weights.

    Blocks are read one after the other, and of a sharded weight this rank's rows alone. Tensors that are
    quantised here, or converted, are whole for a moment, those of one block at most. Buffers that are in no
    file are computed again. transformers' own sharded loading would also decide what is
    sharded, and cannot load into a network with adapters or quantised fresh; so this calls its parts.

    Args:
        root: what was sharded, the network in it, or the network itself.
        network: with adapters, quantised layers and sharded weights as they are to be.
        device: of this rank.

    Raises:
        InputError: weights are missing, left over or of another shape.
    """
    late = late_weights_of(network)
    if late is None:
        return
    _allocate(root, device)
    if not any(isinstance(weight, DTensor) for weight in network.parameters()):
        network.tie_weights(recompute_mapping=False)  # sharded weights stay tied by themselves
    targets = _targets(network)
    _compute_buffers(late.plain, targets, device)
    if late.seed is None:
        _read(late, targets, device)
        # it is saved under the names of the source
        network._weight_conversions = late.plain._weight_conversions
    else:

        def take(tensors: Mapping[str, Tensor]) -> None:
            for name, tensor in tensors.items():
                _put(targets[name], name, tensor)

        draw(late.plain, seed=late.seed, device=device, take=take)
    network.late_weights = None


def same_source(one: LateWeights, other: LateWeights) -> bool:
    """Whether two networks of one architecture are going to be loaded from one and the same folder."""
    is_drawn = one.seed is not None or other.seed is not None
    return not is_drawn and os.path.realpath(one.source) == os.path.realpath(other.source)


def _allocate(root: nn.Module, device: torch.device) -> None:
    """Memory for what is on the meta device, inner modules first: FSDP looks at them from outside."""
    for module in reversed([*root.modules()]):
        own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
        if any(tensor.is_meta for tensor in own):
            module.to_empty(device=device, recurse=False)


def _targets(network: nn.Module) -> dict[str, nn.Module]:
    """The modules whose tensors are to be loaded, by the names of the tensors without adapters."""
    tensors = chain(
        network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    )
    names = [name for name, _ in tensors if not is_adapter(name)]
    return {
        name.replace(".base_layer.", "."): network.get_submodule(name.rpartition(".")[0]) for name in names
    }


def _compute_buffers(plain: PreTrainedModel, targets: Mapping[str, nn.Module], device: torch.device) -> None:
    """Buffers that no file holds, as each family computes them."""
    for weight in plain.parameters():
        weight._is_hf_initialized = True
    for name, buffer in [*plain.named_buffers()]:
        path, _, leaf = name.rpartition(".")
        plain.get_submodule(path)._buffers[leaf] = torch.empty_like(buffer, device=device)
    plain.initialize_weights()
    for name, buffer in plain.named_buffers():
        _put(targets[name], name, buffer)
    for module in plain.modules():
        module._is_hf_initialized = False
    for weight in plain.parameters():
        weight._is_hf_initialized = False


def _read(late: LateWeights, targets: Mapping[str, nn.Module], device: torch.device) -> None:
    """Load all weights from the source, block by block, and make sure that there are no others."""
    plain = late.plain
    dtype = plain.dtype
    config = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=plain._get_dtype_plan(dtype),
        device_map={"": device},
        weight_mapping=get_model_conversion_mapping(plain),
    )
    missing, unexpected, mismatched = set(plain.state_dict()), set(), set()
    failed: dict[str, str] = {}
    with _without_progress():
        for block in _blocks(late):
            with _parts(plain, targets):
                found, _ = convert_and_load_state_dict_in_model(plain, block, config)
                wrong = {name for name, *_ in found.mismatched_keys}
                for name in set(plain.state_dict()) - found.missing_keys - wrong:
                    _put(targets[name], name, _tensor(plain, name))
            missing &= found.missing_keys
            unexpected |= found.unexpected_keys
            mismatched |= found.mismatched_keys
            failed |= found.conversion_errors
    if failed:
        raise InputError(f"cannot load a model from {late.source!r}: {next(iter(failed.values()))}")
    missing -= {name for name, tied in plain.all_tied_weights_keys.items() if tied not in missing}
    report = LoadStateDictInfo(missing, unexpected, mismatched, [], {}, set())
    plain._adjust_missing_and_unexpected_keys(report)
    check_report(late.source, plain, report.to_dict())


@contextmanager
def _parts(plain: PreTrainedModel, targets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Have the network without weights ask for this rank's part of each, and be without them afterwards."""
    before = {module: dict(module._parameters) for module in plain.modules()}
    try:
        for name, _ in plain.named_parameters(remove_duplicate=False):
            path, _, leaf = name.rpartition(".")
            target = targets[name]
            if isinstance(weight := getattr(target, leaf), DTensor) and not isinstance(
                target, quantised_kinds()
            ):
                plain.get_submodule(path)._parameters[leaf] = weight
        yield
    finally:
        for module, parameters in before.items():
            module._parameters = parameters


def _tensor(network: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(network.get_submodule(path), leaf)


def _put(module: Any, name: str, tensor: Tensor) -> None:
    """Copy a tensor, or this rank's part of it, to where it belongs."""
    leaf = name.rpartition(".")[2]
    target = getattr(module, leaf)
    if leaf == "weight" and isinstance(module, quantised_kinds()):
        tensor = pack(module, tensor)
        if not isinstance(target, DTensor):
            module.weight = tensor
            return
    if isinstance(target, DTensor):
        own = tensor.to_local() if isinstance(tensor, DTensor) else _part(target, tensor)
        target.to_local().copy_(own)
    else:
        target.copy_(tensor)


def _part(target: DTensor, whole: Tensor) -> Tensor:
    """This rank's part of a tensor that is to be sharded as another is."""
    part = DtensorShardOperation(target).shard_tensor(whole)
    assert part is not None
    return part


def _blocks(late: LateWeights) -> Iterator[dict[str, Any]]:
    """The tensors of the source, unread as far as its files allow, those of a block together."""
    if is_released(late.source):
        yield from _released_blocks(late)
        return
    files = _files(late.source)
    if not files[0].endswith(".safetensors"):
        for file in files:
            yield torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return
    opened = [safe_open(file, framework="pt") for file in files]
    blocks: dict[str, dict[str, Any]] = {}
    for one in opened:
        for name in one.keys():  # noqa: SIM118  (it is no dict)
            block = _BLOCK.match(name)
            blocks.setdefault(block[0] if block else "", {})[name] = one.get_slice(name)
    yield from blocks.values()


def _released_blocks(late: LateWeights) -> Iterator[dict[str, Any]]:
    checkpoint = ReleasedCheckpoint(late.source)
    head = late.plain is not late.plain.base_model
    if head and checkpoint.is_reward:
        raise InputError(
            f"{late.source} holds the reward model, which has no language head: generate with the causal "
            "release"
        )
    for entry in checkpoint.entries:
        tensors = dict(checkpoint.native(entry))
        if head:
            yield {name if name == "lm_head.weight" else f"model.{name}": t for name, t in tensors.items()}
        elif not {"lm_head.weight", "score.weight"} & tensors.keys():
            yield tensors


def _files(source: str) -> list[str]:
    """The files that hold the weights, on this machine."""
    kinds = {SAFE_WEIGHTS_NAME: False, SAFE_WEIGHTS_INDEX_NAME: True}
    kinds |= {WEIGHTS_NAME: False, WEIGHTS_INDEX_NAME: True}
    for name, is_index in kinds.items():
        try:
            path = cached_file(source, name)
        except OSError:
            continue
        if path is None:
            continue
        return get_checkpoint_shard_files(source, path)[0] if is_index else [path]
    raise InputError(
        f"cannot load a model from {source!r}: it holds neither {SAFE_WEIGHTS_NAME} nor "
        f"{SAFE_WEIGHTS_INDEX_NAME}: download it again, or give the folder that holds its weights"
    )


@contextmanager
def _without_progress() -> Iterator[None]:
    """No bar for each block."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
