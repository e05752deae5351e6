# SPDX-License-Identifier: Apache-2.0
"""A pre-trained network in parts, vision, projector and language, each trained or frozen as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ixc_lightning.models.adapters import adapter_weights
from ixc_lightning.models.families import Family
from ixc_lightning.models.parts import longest_list, parameters_of
from ixc_lightning.models.quantisation import Quantisation
from ixc_lightning.types import InputError

ROLES = ("vision", "projector", "language")
"""The parts of a backbone that are frozen or trained as a whole."""


class Parted(nn.Module):
    """What a backbone is made of.

    Attributes:
        model: the network of transformers.
        has_head: whether the network has its language head.
        is_multimodal: whether it takes pictures.
        family: where the parts sit.
        quantisation: of the decoder's linear layers, if they are quantised.
        frozen: the ``ROLES`` that are not trained.
        frozen_tower: how FSDP2 leaves a frozen vision tower and projector, ``whole`` or ``sharded``.
        adapter: name of the adapters that the network speaks through, if it has some.
        shares: whether a prompt is to be read once for several responses (``packing.prepare``).
        grows: whether a prompt can be read once for all that is drawn behind it (``growth.grows``); None
            where that has not been tried.
    """

    model: PreTrainedModel
    has_head: bool
    is_multimodal: bool
    family: Family
    quantisation: Quantisation | None
    frozen: tuple[str, ...]
    frozen_tower: Literal["whole", "sharded"]
    adapter: str | None = None
    shares: bool = False
    grows: bool | None = None

    @property
    def base(self) -> PreTrainedModel:
        """The multi-modal network without its language head."""
        return self.model.base_model if self.has_head else self.model

    @property
    def config(self) -> PretrainedConfig:
        """The network's config."""
        return self.model.config

    @property
    def keeps_language(self) -> bool:
        """Whether the language model's own weights stay as they are, whatever ``freeze`` says."""
        return self.adapter is not None or self.quantisation is not None

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""
        return self.config.get_text_config().hidden_size

    def freeze(self, roles: Sequence[str]) -> None:
        """Freeze exactly these ``ROLES`` and train all others; frozen modules also stay in evaluation mode.

        Of a language model with adapters they alone are trained, and of a quantised one without them nothing.

        Raises:
            InputError: if a role is unknown.
        """
        if unknown := set(roles) - set(ROLES):
            raise InputError(f"freeze: {', '.join(sorted(unknown))} is none of {', '.join(ROLES)}")
        self.frozen = tuple(roles)
        adapters = set() if self.adapter is None else {*adapter_weights(self.base, self.adapter).values()}
        for role, parameters in self.role_parameters().items():
            for parameter in parameters:
                is_kept = role == "language" and self.keeps_language and parameter not in adapters
                parameter.requires_grad_(role not in roles and not is_kept)
        self.train(self.training)

    def role_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each role; a projector that sits inside the tower is part of that as well."""
        vision = self.family.vision(self.base)
        projector = [part for part in self.family.projector(self.base) if isinstance(part, nn.Module)]
        inner = [module for module in self.base.children() if module not in vision + projector]
        outer = (
            [module for module in self.model.children() if module is not self.base] if self.has_head else []
        )
        return {"vision": vision, "projector": projector, "language": inner + outer}

    def role_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each role, every parameter in exactly one; embeddings and head are language."""
        projector = parameters_of(self.family.projector(self.base))
        taken = {id(parameter) for parameter in projector}
        vision = [
            parameter
            for parameter in parameters_of(self.family.vision(self.base))
            if id(parameter) not in taken
        ]
        taken |= {id(parameter) for parameter in vision}
        language = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        return {"vision": vision, "projector": projector, "language": language}

    def train(self, mode: bool = True) -> Parted:
        """Set training mode, except in frozen roles, whose dropout stays off."""
        super().train(mode)
        for role, modules in self.role_modules().items():  # the projector after the tower that may hold it
            for module in modules:
                module.train(mode and role not in self.frozen)
        return self

    def decoder_layers(self) -> list[nn.Module]:
        """The layers of the language model, first to last, for sharding."""
        return longest_list(self.role_modules()["language"])

    def vision_blocks(self) -> list[nn.Module]:
        """The blocks of the vision tower, first to last, for sharding; none in a text model."""
        return longest_list(self.role_modules()["vision"])

    def check_family(self) -> None:
        """Make sure that the network can be given encoded pictures, and that its parts were found.

        Raises:
            InputError: it cannot, or they are not.
        """
        if not self.is_multimodal:
            return
        name = type(self.base).__name__
        if "mm_encoder_outputs" not in signature(self.base.forward).parameters:
            raise InputError(
                f"{name} cannot be given encoded pictures: upgrade to transformers>=5.23, or take another"
            )
        parts = self.role_modules()
        if missing := [role for role in ("vision", "projector") if not parts[role]]:
            known = ", ".join(child for child, _ in self.base.named_children())
            raise InputError(f"no {' and no '.join(missing)} was found among the parts of {name}: {known}")
