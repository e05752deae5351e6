# SPDX-License-Identifier: Apache-2.0
"""One look at each picture for all roles that would see the same in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import Prompts

VISION = ("vision", "projector")
NOT_ABOUT_PICTURES = (
    "_name_or_path",
    "architectures",
    "dtype",
    "text_config",
    "tie_word_embeddings",
    "transformers_version",
    "use_cache",
)
"""Entries of a config that may differ between roles that see the same."""


@runtime_checkable
class Seeing(Protocol):
    """A role that encodes pictures."""

    def encode(self, prompts: Prompts) -> Visuals | None:
        """The pictures and clips of a batch, encoded."""


class Pictures:
    """The pictures of a batch of prompts, as every role sees them.

    Frozen towers look once; roles whose frozen towers are the same share what one of them saw. A trained
    tower looks anew whenever it is asked, so that its gradient is that of the present weights.

    Args:
        prompts: the B prompts with their media, not stacked.
        roles: everyone who looks.
        eyes: whose look serves each role (``shared_eyes``).
    """

    def __init__(self, prompts: Prompts, roles: Mapping[str, Seeing], eyes: Mapping[str, str]) -> None:
        self.prompts = prompts
        self.roles = roles
        self.eyes = eyes
        self.seen: dict[str, Visuals | None] = {}

    def all(self, role: str) -> Visuals | None:
        """The pictures of all prompts, in row order, as the role sees them; None for text alone."""
        eye = self.eyes[role]
        if eye in self.seen:
            return self.seen[eye]
        network = self.roles[eye]
        visuals = network.encode(self.prompts)
        if not is_trained(backbone_of(network)):
            self.seen[eye] = visuals
        return visuals

    def of(self, role: str, prompt_index: Int[Tensor, " R"]) -> Visuals | None:
        """The pictures of some prompts, in the given order, as the role sees them; None for text alone."""
        visuals = self.all(role)
        return None if visuals is None else visuals.select(prompt_index)


def backbone_of(role: Any) -> Backbone:
    """The backbone of a role, which may be the role itself."""
    return role if isinstance(role, Backbone) else role.backbone


def is_trained(backbone: Backbone) -> bool:
    """Whether any weight that pictures pass through is trained."""
    return any(parameter.requires_grad for parameter in _vision_parameters(backbone))


def shared_eyes(roles: Mapping[str, Seeing]) -> dict[str, str]:
    """For each role the first role whose look at the pictures serves it: its own, if none sees the same.

    Two roles see the same if their vision towers and projectors are frozen, of one architecture, and equal
    bit for bit. That is compared, not assumed: a reward model may have been trained with its tower.
    """
    eyes: dict[str, str] = {}
    for name, role in roles.items():
        same = (
            other for other in eyes.values() if see_the_same(backbone_of(roles[other]), backbone_of(role))
        )
        eyes[name] = next(same, name)
    return eyes


def see_the_same(first: Backbone, second: Backbone) -> bool:
    """Whether two backbones make the same features of every picture, now and for good."""
    if is_trained(first) or is_trained(second) or _settings(first) != _settings(second):
        return False
    one, two = _weights(first), _weights(second)
    return len(one) == len(two) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, two, strict=True)
    )


def _settings(backbone: Backbone) -> tuple[type, str, dict[str, Any]]:
    settings = backbone.config.to_dict()
    about = {name: value for name, value in settings.items() if name not in NOT_ABOUT_PICTURES}
    return type(backbone.base), backbone.frozen_tower, about  # whole and sharded weights cannot be compared


def _vision_parameters(backbone: Backbone) -> list[nn.Parameter]:
    parameters = backbone.role_parameters()
    return [parameter for role in VISION for parameter in parameters[role]]


def _weights(backbone: Backbone) -> list[Tensor]:
    modules = backbone.role_modules()
    buffers = [buffer for role in VISION for module in modules[role] for buffer in module.buffers()]
    return [*_vision_parameters(backbone), *buffers]
