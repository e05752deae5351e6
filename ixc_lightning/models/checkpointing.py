# SPDX-License-Identifier: Apache-2.0
"""Activations that are computed again in the backward pass instead of being kept: all, or some of them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from ixc_lightning.types import InputError

Checkpointing = bool | int | Literal["selective"]
"""``False`` keeps all activations and ``True`` computes every layer again; a number k every k-th layer;
``selective`` every layer but its matrix products and attention, which are kept."""

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear)
"""What a linear layer is, as torch computes it."""


def checkpoint_activations(network: PreTrainedModel, how: Checkpointing) -> None:
    """Have a network compute activations again in its backward pass; gradients stay the same, bit for bit.

    What is computed again costs time and what is kept costs memory: ``selective`` computes norms, rotations,
    activation functions and products by element again, which are most of the bytes and hardly any of the
    arithmetic (Korthikanti et al. 2022, §5, arXiv 2205.05198, with the matrix products kept).

    Args:
        network: with or without its language head; only layers in training mode are concerned.
        how: see ``Checkpointing``.

    Raises:
        InputError: the network cannot do that, or the number of layers is not positive.
    """
    if how is False:
        return
    every = 1 if isinstance(how, (bool, str)) else how
    if every < 1:
        raise InputError(
            f"gradient_checkpointing is {how}, but must be true, false, selective, or the number k of every "
            "k-th layer that is computed again, 1 or more"
        )
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _is_kept)
    try:
        network.activation_checkpointing_enable(
            activation_checkpointing_kwargs=settings, every_n_layers=every
        )
    except ValueError as error:
        raise InputError(
            f"gradient_checkpointing: {type(network).__name__} cannot compute activations again; set it to "
            "false"
        ) from error
    # set along with it for the reentrant kind only; it would grow a graph through a frozen tower
    network.disable_input_require_grads()


def _is_kept(context: Any, operation: Any, *arguments: Any, **settings: Any) -> CheckpointPolicy:
    """Matrix products and attention kernels, whoever wrote them, are kept."""
    packet = getattr(operation, "overloadpacket", operation)
    is_attention = "attention" in str(packet) or "flash_attn" in str(packet)
    is_dear = packet in PRODUCTS or is_attention
    return CheckpointPolicy.MUST_SAVE if is_dear else CheckpointPolicy.PREFER_RECOMPUTE
