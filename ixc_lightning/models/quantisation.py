# SPDX-License-Identifier: Apache-2.0
"""Weights of 4 bits in the linear layers of a decoder, by bitsandbytes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ixc_lightning.types import InputError

Quantisation = Literal["nf4"]


def quantise(base: PreTrainedModel, layers: Sequence[nn.Module], kind: Quantisation) -> None:
    """Replace the linear layers of a decoder by quantised ones, which are frozen.

    ``nf4`` stores 4-bit normal floats in blocks of 64 with doubly quantised scales, 4.13 bits a weight
    (Dettmers et al. 2023, arXiv 2305.14314). Computation is in the dtype that the weights had. Vision tower,
    projector, embeddings, norms and language head stay as they are: the decoder is large, and it is adapted.

    transformers quantises while it loads. It must be told by name what to leave alone, before there is a
    network, and can neither quantise fresh weights nor show the sizes on the meta device; so this goes
    through a network that is there.

    Args:
        base: the network without its language head.
        layers: the decoder's.
        kind: how; there is one way.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb  # slow to import, and needed by those alone who quantise
    except ImportError as error:
        raise InputError(
            f"quantisation: {kind} needs bitsandbytes: pip install 'ixc-lightning[quant]'"
        ) from error
    for layer in layers:
        linears = [(path, part) for path, part in layer.named_modules() if type(part) is nn.Linear]
        for path, linear in linears:
            layer.set_submodule(path, _quantised(bnb, linear, kind))
    # PEFT asks for this name to choose adapters that compute with quantised layers
    base.is_loaded_in_4bit = True


def quantised_kinds() -> tuple[type[nn.Module], ...]:
    """The classes of quantised linear layers; none before something was quantised."""
    bnb = sys.modules.get("bitsandbytes")
    return () if bnb is None else (bnb.nn.Linear4bit,)


def plain_weight(linear: nn.Module) -> Tensor:
    """The weight of a linear layer as an ordinary matrix, dequantised where it is quantised."""
    layer: Any = linear
    if not isinstance(linear, quantised_kinds()):
        return layer.weight.detach()
    # the layer's own state: a weight that was sharded is a plain parameter, which has none
    return sys.modules["bitsandbytes"].functional.dequantize_4bit(layer.weight.data, layer.quant_state)


def pack(linear: nn.Module, weight: Tensor) -> Tensor:
    """Quantise the weight of a quantised layer, on the device where it is.

    The layer takes its scales; the packed numbers are given back, to be put, or divided, where they belong.
    """
    layer: Any = linear
    bnb = sys.modules["bitsandbytes"]
    settings = _settings(layer.quant_type, layer.quant_storage)
    packed = bnb.nn.Params4bit(weight, requires_grad=False, module=layer, **settings)
    return packed.to(weight.device)  # is quantised when it is moved


def stand_in(weight: nn.Parameter) -> nn.Parameter:
    """A weight on the CPU for one on the meta device, like it but for its numbers, which take no memory."""
    zeros = torch.zeros((), dtype=weight.dtype, device="cpu").expand(weight.shape)
    if type(weight) is nn.Parameter:
        return nn.Parameter(zeros, requires_grad=False)
    packed: Any = weight
    made: nn.Parameter = sys.modules["bitsandbytes"].nn.Params4bit(
        zeros, requires_grad=False, **_settings(packed.quant_type, packed.quant_storage)
    )
    return made


def _settings(kind: str, storage: torch.dtype) -> dict[str, Any]:
    return {"quant_type": kind, "compress_statistics": True, "quant_storage": storage}


def _quantised(bnb: Any, linear: nn.Linear, kind: str) -> nn.Module:
    dtype, device = linear.weight.dtype, linear.weight.device
    # the pieces are stored in the dtype of the other weights, since sharding wants one dtype
    settings = _settings(kind, dtype)
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, device="meta", **settings
    )
    made.quant_type = kind
    plain = linear.weight.data
    if device.type == "meta":  # two weights a byte, so that sizes are true
        plain = torch.empty(plain.numel() // 2 // dtype.itemsize, 1, dtype=dtype, device=device)
        made.weight = bnb.nn.Params4bit(plain, requires_grad=False, module=made, **settings)
    else:
        made.weight = pack(made, plain)
    made.bias = linear.bias
    return made.requires_grad_(False)
