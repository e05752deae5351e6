# SPDX-License-Identifier: Apache-2.0
"""Bytes of what stays on a GPU: weights, states of optimisers, the cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ixc_lightning.models.quantisation import quantised_kinds

NF4_BLOCK, NF4_GROUP = 64, 256
"""Weights that share a scale, and scales that share one of their own (Dettmers et al. 2023, §3)."""
NF4_TABLES = 16 * 4 + 256 * 4 + 4
"""Bytes of a layer's two code tables and the mean of its scales."""
STATE_BLOCK, STATE_SMALLEST = 256, 4096
"""Numbers of 8-bit states that share a scale, and weights below which states stay whole."""


def nf4_bytes(numbers: int) -> int:
    """Bytes of a matrix in 4 bits: n/2, with scales of 8 bits for blocks of 64 and those' own scales.

    Example:
        >>> nf4_bytes(64 * 256) - 1092  # codes, 256 scales, and the one scale of the scales
        8452
    """
    blocks = ceil(numbers / NF4_BLOCK)
    return ceil(numbers / 2) + blocks + 4 * ceil(blocks / NF4_GROUP) + NF4_TABLES


def weight_bytes(modules: Iterable[nn.Module], *, dtype: torch.dtype | None = None) -> int:
    """Bytes of all parameters and buffers of some modules, each once.

    Args:
        modules: on any device, the meta device too.
        dtype: that floating-point weights are held in; null is their own.
    """
    total, seen = 0, set()
    for part in {id(part): part for module in modules for part in module.modules()}.values():
        layer: Any = part  # a quantised one has sizes of its own
        is_quantised = isinstance(part, quantised_kinds())
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if is_quantised and tensor is layer.weight:
                total += nf4_bytes(layer.in_features * layer.out_features)
            else:
                own = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                total += tensor.numel() * own.itemsize
    return total


def optimiser_bytes(
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], weights: Sequence[Tensor]
) -> int:
    """Bytes of the states of an optimiser after its first step.

    8-bit optimisers are known by their blocks; any other is asked, by a step on a small matrix, how many
    bytes it keeps for each number. One that keeps factors instead of whole matrices is counted too low.

    Args:
        optimizer: makes it for parameters.
        weights: that it is to train, on any device.
    """
    probe = nn.Parameter(torch.zeros(8, 8))
    built = optimizer([probe])
    name = f"{type(built).__module__}.{type(built).__name__}"
    if "8bit" in name.lower():
        moments = 1 if "lion" in name.lower() else 2
        is_torchao = name.startswith("torchao.")
        return sum(_eight_bits(weight, moments, is_torchao=is_torchao) for weight in weights)
    total = 0
    for dtype in {weight.dtype for weight in weights}:
        probe = nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        probe.grad = torch.zeros_like(probe)
        built = optimizer([probe])
        built.step()
        states = [state for state in built.state[probe].values() if isinstance(state, Tensor)]
        each = sum(state.itemsize for state in states if state.shape == probe.shape)
        once = sum(state.nbytes for state in states if state.shape != probe.shape)
        total += sum(each * weight.numel() + once for weight in weights if weight.dtype == dtype)
    return total


def is_foreach(optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]) -> bool:
    """Whether a step on a GPU makes a copy of all second moments for a while, as Adam's of torch does."""
    built: Any = optimizer([nn.Parameter(torch.zeros(1))])
    is_adam = isinstance(built, torch.optim.Adam | torch.optim.AdamW | torch.optim.NAdam | torch.optim.RAdam)
    return is_adam and not built.defaults.get("fused") and built.defaults.get("foreach") is not False


def cache_bytes(config: Any, *, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values: 2 · layers · heads of keys · their width · tokens · bytes of a number.

    Args:
        config: of the network, as transformers describes it.
        tokens: of all rows, prompts and responses.
        dtype: of keys and values.
    """
    text: Any = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * tokens * dtype.itemsize


def _eight_bits(weight: Tensor, moments: int, *, is_torchao: bool) -> int:
    numbers = weight.numel()
    if numbers < STATE_SMALLEST or (is_torchao and numbers % STATE_BLOCK):
        return moments * numbers * (weight.itemsize if is_torchao else 4)
    return moments * (numbers + 4 * ceil(numbers / STATE_BLOCK))
