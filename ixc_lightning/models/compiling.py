# SPDX-License-Identifier: Apache-2.0
"""Compilation of a decoder's layers by ``torch.compile``, one at a time, for sequences of any length."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from inspect import unwrap
from typing import Any, Literal

import torch
from torch import nn

from ixc_lightning.models.checkpointing import Checkpointing
from ixc_lightning.types import InputError

Compile = bool | Literal["default", "max-autotune-no-cudagraphs", "aot_eager"]
"""``True`` is ``default``. The first two are modes of inductor; ``aot_eager`` traces and differentiates as
they do, but makes no kernels and needs no compiler. Modes with CUDA graphs would record one per length."""

VARIANTS = 64
"""Most compilations of one kind of layer. It is compiled apart for one sequence and for several, with
gradients and without, for each kind of mask, and for the adapters of each role; torch compiles no more."""


def compile_layers(layers: Sequence[nn.Module], how: Compile) -> None:
    """Compile the layers of a decoder in place; all of one kind share what is compiled.

    Lengths and numbers of sequences are symbols in it, so that batches of other sizes need no compilation. A
    layer gets a class of its own, whose name and state are the old one's. What stands around the forward
    pass, gradient checkpointing and the hooks of sharding, is not compiled. With a cache of keys and values,
    in generation, whose length changes with every token, layers run as they are.

    Args:
        layers: of a decoder, not sharded yet.
        how: see ``Compile``.

    Raises:
        InputError: there is no compiler to make kernels for the CPU with.
    """
    if how is False:
        return
    mode = "default" if how is True else how
    if mode != "aot_eager":
        _check_compiler()
    # torch gives up a function after 8, and says so in its log alone
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for layer in layers:
        kind: Any = type(layer)
        layer.__class__ = _compiled(kind, mode)


def check_together(checkpointing: Checkpointing, how: Compile) -> None:
    """Refuse what torch cannot do at once.

    Raises:
        InputError: ``selective`` checkpointing sees single operations, and a compiled layer has none.
    """
    if checkpointing == "selective" and how is not False:
        raise InputError(
            "gradient_checkpointing: selective chooses among the operations of a layer, and a compiled layer "
            "is one: with compile give true, a number, or false; a compiled layer computes its cheap "
            "operations again by itself"
        )


@cache
def _compiled(kind: Any, mode: str) -> type[nn.Module]:
    """The kind of layer whose forward pass is compiled."""
    plain: Callable[..., Any] = unwrap(kind.forward)  # without the checkpointing around it
    if mode == "aot_eager":
        compiled = torch.compile(plain, dynamic=True, backend=mode)
    else:
        compiled = torch.compile(plain, dynamic=True, mode=mode)

    def forward(self: nn.Module, *arguments: Any, **settings: Any) -> Any:
        has_cache = settings.get("past_key_values") is not None
        return (plain if has_cache else compiled)(self, *arguments, **settings)

    own = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), own)


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise InputError(
            f"compile makes kernels for the CPU with a C++ compiler, and there is no {compiler}: install it, "
            "name another in the environment variable CXX, or set compile to false"
        )
