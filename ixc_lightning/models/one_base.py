# SPDX-License-Identifier: Apache-2.0
"""Several roles on one network: each speaks through adapters of its own, or through none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from ixc_lightning.models.adapters import (
    MATRICES,
    activate,
    adapter_layers,
    adapter_weights,
    inject,
    is_adapter,
)
from ixc_lightning.models.backbone import Backbone, Read
from ixc_lightning.models.late_weights import same_source
from ixc_lightning.models.loading import late_weights_of
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import InputError, Prompts

NOT_ABOUT_WEIGHTS = ("_name_or_path", "architectures", "transformers_version", "use_cache")
"""Entries of a config that may differ between networks that compute the same."""


class Voice(Backbone):
    """A backbone whose network is another's, and that speaks through some of the adapters in it.

    Its parameters, and so its state, are those adapters alone. Whenever it is called it makes them the active
    ones and leaves them so. Voices of one network therefore take turns, and the backward pass of one must be
    done before another is called, because gradient checkpointing computes layers again in it.

    All that a voice says goes through its owner, which may be sharded, once it has all its voices.

    Args:
        owner: whose network it is; nothing in it but adapters is trained.
        adapter: the name of the adapters in it; None speaks as the base model.
        head: whether it has the language head, which the owner's network must have then.
    """

    owner: Backbone

    def __init__(self, owner: Backbone, adapter: str | None, *, head: bool) -> None:
        nn.Module.__init__(self)
        # no submodules of this one
        object.__setattr__(self, "owner", owner)
        object.__setattr__(self, "model", owner.model if head else owner.base)
        self.has_head = head
        self.family, self.is_multimodal = owner.family, owner.is_multimodal
        self.quantisation, self.saved_as = owner.quantisation, owner.saved_as
        self.adapter, self.frozen, self.frozen_tower = adapter, owner.frozen, owner.frozen_tower
        self.adapters = nn.ModuleDict()
        for path, layer in adapter_layers(self.base).items():
            parts = {part: getattr(layer, part) for part in (*MATRICES, "lora_dropout")}
            if adapter in layer.lora_A:
                own = {part: modules[adapter] for part, modules in parts.items()}
                self.adapters[path.replace(".", "/")] = nn.ModuleDict(own)
        self.register_forward_pre_hook(_speak)

    @property
    def keeps_language(self) -> bool:
        """Always: the language model's own weights are those of others too."""
        return True

    def encode(self, prompts: Prompts) -> Visuals | None:
        """The pictures and clips of a batch, which all voices see alike."""
        return self.owner.encode(prompts)

    def forward(self, *inputs: Any, **options: Any) -> Float[Tensor, "B L D"]:
        """The last hidden states, as those of a backbone."""
        hidden: Tensor = self.owner(*inputs, **options)
        return hidden

    def logits(self, hidden: Float[Tensor, "*L D"]) -> Float[Tensor, "*L V"]:
        """The language head's logits, as those of a backbone."""
        return self.owner.logits(hidden) if self.has_head else super().logits(hidden)

    def read_logits(
        self, read: Callable[..., Read], hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
    ) -> Read:
        """What is read off the logits, as those of a backbone."""
        return (self.owner if self.has_head else super()).read_logits(read, hidden, targets)

    def generate(
        self,
        prompts: Prompts,
        visuals: Visuals | None,
        settings: GenerationConfig,
        processors: LogitsProcessorList | None = None,
    ) -> Int[Tensor, "B T"]:
        """Responses of this voice, as those of a backbone."""
        activate(self.base, self.adapter)
        return self.owner.generate(prompts, visuals, settings, processors)


def lend(backbone: Backbone) -> Voice:
    """A voice that says what a backbone says, whose network other voices may then share.

    From then on the backbone itself says what its base model does, and its adapters are the voice's.

    Raises:
        InputError: more than adapters is trained in it, and other voices would change with that.
    """
    if not _can_share(backbone):
        trained = {"vision", "projector"} - set(backbone.frozen)
        raise InputError(
            f"policy.freeze leaves {' and '.join(sorted(trained))} to be trained, but with adapters all "
            "roles look through one tower: freeze vision and projector"
        )
    voice = Voice(backbone, backbone.adapter, head=backbone.has_head)
    voice.freeze(backbone.frozen)
    backbone.adapter = None
    return voice


def is_silent(voice: Voice) -> bool:
    """Whether the adapters change nothing yet: every B is zero."""
    weights = {} if voice.adapter is None else adapter_weights(voice.base, voice.adapter)
    return not any(weight.any() for name, weight in weights.items() if ".lora_B." in name)


def moved(backbone: Backbone, owner: Backbone, *, name: str) -> Voice | None:
    """A voice that says what a backbone says, through the network of another; None if the two differ.

    They differ where a weight is trained that is no adapter's, or any weight or setting is another one. That
    they are equal is compared, bit for bit, and not assumed; weights that come later must come from the same
    folder. Attention is computed as the owner does it.

    Args:
        backbone: what is to move; its own network is to be forgotten afterwards.
        owner: into whose network.
        name: that its adapters get there.
    """
    if not _can_share(backbone) or not _is_same_base(backbone, owner):
        return None
    if backbone.adapter is not None:
        inject(owner.base, backbone.base.peft_config[backbone.adapter], name=name)
        weights = adapter_weights(backbone.base, backbone.adapter)
        with torch.no_grad():
            for key, weight in adapter_weights(owner.base, name).items():
                weight.copy_(weights[key])
    voice = Voice(owner, None if backbone.adapter is None else name, head=backbone.has_head)
    voice.saved_as = backbone.saved_as
    voice.freeze(backbone.frozen)
    return voice


def _speak(voice: Voice, inputs: Any) -> None:
    activate(voice.base, voice.adapter)


def _can_share(backbone: Backbone) -> bool:
    parameters = backbone.named_parameters()
    return not any(parameter.requires_grad and not is_adapter(name) for name, parameter in parameters)


def _is_same_base(first: Backbone, second: Backbone) -> bool:
    if type(first.base) is not type(second.base) or _settings(first) != _settings(second):
        return False
    ours, theirs = late_weights_of(first.model), late_weights_of(second.model)
    if ours is not None and theirs is not None:
        is_alike = (first.quantisation, first.base.dtype) == (second.quantisation, second.base.dtype)
        return is_alike and same_source(ours, theirs)
    one, two = _plain_state(first), _plain_state(second)
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(_bits(one[name]), _bits(two[name])) for name in one
    )


def _bits(tensor: Tensor) -> UInt8[Tensor, " bytes"]:
    """What is stored: 4-bit weights are, as numbers of the dtype that holds them, often none."""
    return tensor.flatten().contiguous().view(torch.uint8)


def _settings(backbone: Backbone) -> dict[str, Any]:
    settings = backbone.config.to_dict()
    return {name: value for name, value in settings.items() if name not in NOT_ABOUT_WEIGHTS}


def _plain_state(backbone: Backbone) -> dict[str, Tensor]:
    """The base's weights, with the scales of quantised ones, by the names that they have without adapters."""
    state = backbone.base.state_dict()
    plain = {name: weight for name, weight in state.items() if not is_adapter(name)}
    return {name.replace(".base_layer.", "."): weight for name, weight in plain.items()}
