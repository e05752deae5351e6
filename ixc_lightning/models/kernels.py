# SPDX-License-Identifier: Apache-2.0
"""Kernels by choice: which attention can be had here, and Liger's norms, rotations and activations."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_kernels_available

from ixc_lightning.types import InputError

FLEX = "flex_attention"


class Package(NamedTuple):
    """Where flash attention comes from.

    Attributes:
        module: that is imported.
        install: what to type.
    """

    module: str
    install: str


FLASH = {
    "flash_attention_2": Package("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": Package("flash_attn_interface", "pip install flash-attn-3"),
}
"""Attention by a package of its own, by transformers' names for it."""
HALF = (torch.bfloat16, torch.float16)
LIGER_LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Liger's losses replace a forward pass that is never called here: losses are computed from hidden states."""


def check_attention(attention: str) -> None:
    """Make sure that flash attention can run on this machine; other kinds pass.

    On the meta device, where nothing is computed, no GPU is needed.

    Raises:
        InputError: there is no GPU, or the package is missing.
    """
    if attention not in FLASH:
        return
    module, install = FLASH[attention]
    if not torch.cuda.is_available() and torch.get_default_device().type != "meta":
        raise InputError(f"attention: {attention} needs a CUDA GPU, and there is none: use attention: sdpa")
    # transformers takes the kernels from the hub where that library is installed
    if find_spec(module) is None and not is_kernels_available():
        raise InputError(
            f"attention: {attention} needs the package {module}: {install}, or use attention: sdpa, whose "
            "kernels come with torch"
        )


def guard_attention(layer: nn.Module, attention: str) -> None:
    """Have a decoder's first layer say what is wrong where its states are none that the attention computes.

    Weights of float32 may be computed in half precision, so dtypes are only known when a batch comes.

    Args:
        layer: the first one.
        attention: implementation, by its name in transformers; most kinds take everything.
    """
    if attention in FLASH:
        layer.register_forward_pre_hook(_expect_half)
    if attention == FLEX:
        layer.register_forward_pre_hook(_expect_backward)


def use_liger(network: PreTrainedModel) -> None:
    """Let Liger's Triton kernels compute norms, rotations and gated activations of a network, in place.

    The rotation is replaced in transformers' module, so that all networks of the family in this process have
    it.

    Args:
        network: with or without its language head.

    Raises:
        InputError: there is no GPU, the package is missing, or it has no kernels for this network.
    """
    if not torch.cuda.is_available():
        raise InputError("liger: true needs a CUDA GPU, and there is none: set liger to false")
    if find_spec("liger_kernel") is None:
        raise InputError(
            "liger: true needs the package liger_kernel: pip install liger-kernel, or set liger to false"
        )
    library: Any = importlib.import_module("liger_kernel.transformers.monkey_patch")
    name = type(network).__name__
    # Liger itself only logs that it did nothing
    if network.config.model_type not in library.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(f"liger: true, but Liger has no kernels for {name}: set liger to false")
    try:
        library._apply_liger_kernel_to_instance(model=network, **LIGER_LOSSES)
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"liger: true, but Liger cannot change a {name}: {error}; set liger to false, or upgrade "
            "liger-kernel"
        ) from error


def _expect_half(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    hidden = inputs[0]
    kind = hidden.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if is_cast else hidden.dtype
    if kind == "cpu":
        raise InputError("flash attention runs on a GPU, but the model is on the CPU: use attention: sdpa")
    if dtype not in HALF:
        raise InputError(
            f"flash attention computes in bfloat16 or float16, but the states are {dtype}: give "
            "trainer.precision bf16-mixed, the model dtype: bfloat16, or use attention: sdpa"
        )


def _expect_backward(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    is_trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    if is_trained and inputs[0].device.type == "cpu":
        raise InputError(f"{FLEX} has no backward pass on the CPU: use attention: sdpa to train, or a GPU")
