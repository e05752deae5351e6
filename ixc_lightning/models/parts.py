# SPDX-License-Identifier: Apache-2.0
"""Finding the parts of a network: the parameters of several modules, and the stack of layers inside one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def parameters_of(parts: Iterable[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """All parameters of the modules, and the bare parameters among the parts, in order."""
    return [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]


def longest_list(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The longest list of modules that is not inside another: a layer is no expert of a layer, say.

    Empty where there is no list at all.
    """
    lists: list[nn.ModuleList] = []
    for module in modules:
        _collect(module, lists)
    return list(max(lists, key=len, default=[]))


def _collect(module: nn.Module, lists: list[nn.ModuleList]) -> None:
    if isinstance(module, nn.ModuleList):
        lists.append(module)
        return
    for child in module.children():
        _collect(child, lists)
