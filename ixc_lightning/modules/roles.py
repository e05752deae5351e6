# SPDX-License-Identifier: Apache-2.0
"""The networks of on-policy training: frozen where they judge, without dropout, and sharded."""

from __future__ import annotations

from typing import TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ixc_lightning.models.backbone import ROLES, Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.one_base import Voice, moved
from ixc_lightning.models.packing import share
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.sharding import resharded, shard, shard_head
from ixc_lightning.types import InputError

Role = TypeVar("Role", Backbone, RewardModel, Critic)
Network = TypeVar("Network", bound=nn.Module)

DROPOUT_RATES = ("attention_dropout", "dropout", "hidden_dropout", "activation_dropout")
"""Numbers that modules of transformers hand to functional dropout."""


def frozen(role: Role) -> Role:
    """The role with nothing left to train, in evaluation mode for good."""
    backbone_of(role).freeze(ROLES)
    role.requires_grad_(False)
    return role.eval()


def without_dropout(role: Role) -> Role:
    """The role with every dropout at rate 0, in training mode too.

    Tokens are drawn, and their old log-probabilities computed, without dropout: with it the ratio would not
    be 1 before the first step. Evaluation mode would do that, but it also turns gradient checkpointing off.
    """
    for module in role.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUT_RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return role


def placed(role: Network, mesh: DeviceMesh | None, *, compute_dtype: torch.dtype) -> Network:
    """The role sharded over the mesh, if there is one, as a root of its own with all that is called on it.

    A role that was built without its weights (``sharding.built_for``) has them then. Of roles on one base
    that is placed first, once it has all voices; of the roles themselves only the heads are left.
    """
    if mesh is None:
        return role
    backbone = backbone_of(role)
    heads = [head for name in ("score", "value") if isinstance(head := getattr(role, name, None), nn.Module)]
    methods = (
        ["encode", "logits", "read_logits", "generate"] if role is backbone else ["encode", "prepare_sharing"]
    )
    if isinstance(backbone, Voice):  # the network is sharded with its owner
        for head in heads:
            shard_head(head, mesh)
    else:
        shard(role, backbone, mesh, compute_dtype=compute_dtype, exact=heads, methods=methods)
    if isinstance(role, RewardModel):  # could not be found out before there were weights
        role.prepare_sharing()
        resharded(role)
    return role


def joined(role: Role, base: Backbone | None, *, name: str) -> Role:
    """The role on the base that others are on, if there is one and the role's own is equal to it bit for bit.

    Args:
        role: a critic, a reward model, or a reference.
        base: whose network is shared; None if none is.
        name: of the role, and of its adapters in the network.
    """
    voice = None if base is None else moved(backbone_of(role), base, name=name)
    if voice is None:
        return role
    rank_zero_info(f"The {name.replace('_', ' ')} shares the base of the policy")
    without_dropout(voice)
    if isinstance(role, Backbone):
        return voice
    role.backbone = voice
    if isinstance(role, RewardModel):
        role.shares = role.shares and share(voice) is None  # it was found out on another network
    return role


def backbone_of(role: nn.Module) -> Backbone:
    """The role's backbone: a policy is one, a critic and a reward model have one."""
    backbone = role if isinstance(role, Backbone) else role.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def check_speaks(policy: Backbone, name: str) -> None:
    """Make sure that a role can say something.

    Raises:
        InputError: it was built without its language head.
    """
    if not policy.has_head:
        raise InputError(f"the {name} has no language head, so it cannot answer: build it with head: true")
