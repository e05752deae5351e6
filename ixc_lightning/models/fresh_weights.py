# SPDX-License-Identifier: Apache-2.0
"""Random weights for a network on the meta device, of one block at a time in memory if the caller wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

Take = Callable[[Mapping[str, Tensor]], None]


def new_seed() -> int:
    """A seed for ``draw``, drawn from torch's generator of the CPU; that advances by this one number only."""
    return int(torch.randint(2**62, (), device="cpu"))


@torch.no_grad()
def draw(network: PreTrainedModel, *, seed: int, device: torch.device, take: Take | None = None) -> None:
    """Give a network on the meta device the weights that its family starts from.

    They depend on the seed, the kind of device and the architecture alone: not on the ranks, nor on whether
    blocks are taken away. transformers draws for a network as a whole, or not at all.

    Args:
        network: all of it on the meta device.
        seed: of all draws; generators outside go on as if nothing had been drawn.
        device: where it is drawn.
        take: is given the tensors of each block by name, and what is outside of all blocks at the end. The
            block is put back on the meta device then. Null leaves everything where it is.
    """
    devices = [device] if device.type != "cpu" else []
    paths = {module: path for path, module in network.named_modules()}
    blocks = {block: None for block in _blocks(network)}
    inside = {part for block in blocks for part in block.modules()}
    outside = [module for module in network.modules() if module not in inside]

    def begin(modules: list[nn.Module]) -> None:
        for module in modules:
            module.to_empty(device=device, recurse=False)

    def end(modules: list[nn.Module]) -> None:
        if take is not None:
            take(dict(chain.from_iterable(_own(paths[module], module) for module in modules)))
            for module in modules:
                module.to_empty(device="meta", recurse=False)

    def fill(module: nn.Module, owner: PreTrainedModel) -> None:
        for child in module.children():
            if child in blocks:
                begin([*child.modules()])
            fill(child, child if isinstance(child, PreTrainedModel) else owner)
            if child in blocks:
                end([*child.modules()])
        owner._initialize_weights(module)

    with torch.random.fork_rng(devices, device_type=device.type), guard_torch_init_functions():
        torch.manual_seed(seed)
        begin(outside)
        network.tie_weights()
        fill(network, network)
        end(outside)
    if take is not None:
        network.tie_weights()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of all lists that are not inside another: layers of the decoder and of the tower."""
    for child in module.children():
        if isinstance(module, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


def _own(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module itself by their names in the network."""
    tensors = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return ((f"{path}.{name}" if path else name, tensor) for name, tensor in tensors)
