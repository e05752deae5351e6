# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters on the decoder of a backbone, by PEFT: adding, switching, and what they come to.

Vision tower and projector are not adapted. Nothing is ever merged in place: merged weights are computed where
they are written, and the network stays what it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ixc_lightning.models.internlm_xcomposer2.low_rank import LowRankUpdate
from ixc_lightning.models.quantisation import plain_weight, quantised_kinds, stand_in
from ixc_lightning.types import InputError

MATRICES = ("lora_A", "lora_B")
"""PEFT's names of the modules that hold A and B."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: W x becomes W x + (α/r) B A x, where A and B alone are trained.

    Hu et al. 2021, §4.1 (arXiv 2106.09685). A starts random and B at zero, so the start is the base model. A
    and B are float32, whatever W is.

    Args:
        rank: r, the rows of A.
        alpha: α; the update is scaled by α/r.
        dropout: rate on x before A, in training; on-policy training sets it to 0.
        targets: names, or ends of names, of linear layers of the decoder; null is all of them.
        saved_as: what ``save_pretrained`` writes: a whole model with the adapters ``merged`` into its
            weights, or the ``adapter`` apart, which loads where its base model is at hand.

    Raises:
        InputError: a value out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None
    saved_as: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = (
            ("rank", self.rank >= 1, "at least 1"),
            ("alpha", self.alpha > 0, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "from 0 to below 1"),
            ("targets", self.targets is None or len(self.targets) > 0, "null, for all, or name some"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise InputError(f"adapter.{name} is {getattr(self, name)}, but must be {rule}")


def add_adapter(base: PreTrainedModel, layers: Sequence[nn.Module], lora: LoRA, *, name: str) -> None:
    """Add adapters that change nothing yet to the linear layers of a decoder.

    Args:
        base: the network without its language head.
        layers: the decoder's.
        lora: which, and how large.
        name: of the adapters, beside those that the network may have.

    Raises:
        InputError: a target is no linear layer of the decoder, or PEFT is not installed.
    """
    targets = names = _linear_names(base, layers)
    if lora.targets is not None:
        chosen = {end: [n for n in names if n == end or n.endswith(f".{end}")] for end in lora.targets}
        if wrong := [end for end, found in chosen.items() if not found]:
            ends = sorted({path.rsplit(".", 1)[-1] for path in names})
            raise InputError(
                f"adapter.targets: {', '.join(wrong)} is no linear layer of the decoder of "
                f"{type(base).__name__}; there are {', '.join(ends)}"
            )
        targets = [path for found in chosen.values() for path in found]
    config = peft().LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    inject(base, config, name=name)


def inject(base: PreTrainedModel, config: Any, *, name: str) -> None:
    """Add the adapters that a config of PEFT describes, in float32; what else is trained stays as it was."""
    trained = {parameter: parameter.requires_grad for parameter in base.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
        with _stand_ins(base):
            peft().inject_adapter_in_model(config, base, adapter_name=name)
    for weight in adapter_weights(base, name).values():
        weight.data = weight.data.float()
    for parameter, is_trained in trained.items():
        parameter.requires_grad_(is_trained)


def adapter_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by their names in the network."""
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict)
    }


def adapter_weights(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The matrices A and B of the adapters of one name, by PEFT's names of them."""
    return {
        f"{path}.{kind}.weight": matrix.weight
        for path, layer in adapter_layers(network).items()
        for kind, matrix in _matrices(layer, name).items()
    }


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name belongs to adapters."""
    return any(f".{kind}." in parameter for kind in MATRICES)


def activate(network: nn.Module, name: str | None) -> None:
    """Let the adapters of one name work and no others; None turns all of them off.

    Which weights are trained stays as it was: PEFT's own switch trains what it turns on, and nothing else.
    Under gradient checkpointing layers are computed again in the backward pass, with the adapters that are
    active *then*: switch only when no backward pass is due.
    """
    for layer in adapter_layers(network).values():
        if layer.disable_adapters == (name is None) and (name is None or layer.active_adapters == [name]):
            continue
        matrices = [matrix.weight for kind in MATRICES for matrix in getattr(layer, kind).values()]
        trained = [weight.requires_grad for weight in matrices]
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
        for weight, is_trained in zip(matrices, trained, strict=True):
            weight.requires_grad_(is_trained)


@torch.no_grad()
def merged_state(network: nn.Module, name: str | None) -> dict[str, Tensor]:
    """The state of the network without adapters and quantisation, with W + (α/r) B A in the place of W.

    Sums are made in float32. The network itself stays as it is.

    Args:
        network: any network; without adapters and quantisation this is its own state.
        name: of the adapters to merge; None merges none.
    """
    adapted = adapter_layers(network)
    quantised = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, quantised_kinds()) and path.removesuffix(".base_layer") not in adapted
    }
    changed = {**adapted, **quantised}
    state = {
        key: value
        for key, value in network.state_dict().items()
        if not any(parent in changed for parent in _parents(key))
    }
    for path, layer in changed.items():
        linear = getattr(layer, "base_layer", layer)
        weight = plain_weight(linear)
        if path in adapted and name in layer.lora_A:
            weight = torch.add(weight.float(), layer.get_delta_weight(name).float()).to(weight.dtype)
        state[f"{path}.weight"] = weight
        if linear.bias is not None:
            state[f"{path}.bias"] = linear.bias.detach()
    return state


def leave_base_out(network: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Hook of a backbone's ``state_dict``: keep its adapters and what else it trains.

    The base is built from its source again.
    """
    kept = {prefix + name for name in _kept(network)}
    for name in [*state]:
        if name.startswith(prefix) and name not in kept:
            del state[name]


def expect_no_base(network: Any, incompatible: Any) -> None:
    """Hook of ``load_state_dict``: what ``leave_base_out`` leaves out of a state is not missing from it."""
    parameters = network.named_parameters(remove_duplicate=False)  # a tied head has its own name in a state
    left_out = {name for name, _ in (*parameters, *network.named_buffers())} - _kept(network)
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if left_out.isdisjoint([key, *_ends(key)])]


def peft() -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import peft as library  # slow to import, and needed by those alone who adapt
    except ImportError as error:
        raise InputError("adapters need PEFT: pip install 'ixc-lightning[lora]'") from error
    return library


@contextmanager
def _stand_ins(base: nn.Module) -> Iterator[None]:
    """Weights of no memory for linear layers on the meta device: PEFT puts adapters where their layer is."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *quantised_kinds())
    linears: list[Any] = [part for part in base.modules() if isinstance(part, kinds) and part.weight.is_meta]
    weights = [linear._parameters["weight"] for linear in linears]
    for linear in linears:
        linear._parameters["weight"] = stand_in(linear.weight)
    try:
        yield
    finally:
        for linear, weight in zip(linears, weights, strict=True):
            linear._parameters["weight"] = weight


def _linear_names(base: PreTrainedModel, layers: Sequence[nn.Module]) -> list[str]:
    """The linear layers of the decoder, adapted or not, but not those of low-rank updates."""
    inside = {part for layer in layers for part in layer.modules()}
    adapted = adapter_layers(base)
    updates = [part for part in inside if isinstance(part, LowRankUpdate)]  # that the model has of its own
    for module in [*updates, *adapted.values()]:
        inside -= {*module.modules()} - {module}
    linears: tuple[type[nn.Module], ...] = (nn.Linear, *quantised_kinds())
    return [
        name
        for name, part in base.named_modules()
        if part in inside and (name in adapted or isinstance(part, linears))
    ]


def _kept(network: Any) -> set[str]:
    return {
        name
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if (f".{network.adapter}." in name if is_adapter(name) else parameter.requires_grad)
    }


def _matrices(layer: Any, name: str) -> dict[str, Any]:
    return {kind: getattr(layer, kind)[name] for kind in MATRICES if name in getattr(layer, kind)}


def _parents(key: str) -> Iterator[str]:
    steps = key.split(".")
    return (".".join(steps[:count]) for count in range(1, len(steps)))


def _ends(key: str) -> Iterator[str]:
    steps = key.split(".")
    return (".".join(steps[start:]) for start in range(1, len(steps)))
