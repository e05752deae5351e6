# SPDX-License-Identifier: Apache-2.0
"""Sharding of a role's network over ranks by FSDP2, layer by layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ixc_lightning.models.reward_model import RewardModel


def shard_reward_model(model: RewardModel, mesh: DeviceMesh, *, compute_dtype: torch.dtype) -> None:
    """Shard a reward model over the mesh, as one root that owns backbone and head.

    Weights, gradients and optimiser states stay in the dtype that the model was built in, divided among the
    ranks; layers are gathered and computed in ``compute_dtype``, and gradients are summed in float32. The
    head computes in float32.

    A frozen vision tower and projector are left whole on every rank, in ``compute_dtype``: then a rank whose
    batch has no picture runs the same collectives as the others. A trained tower is sharded, and every rank's
    batches must then hold a picture.

    Args:
        model: not yet trained and on the rank's device or the CPU.
        mesh: of one dimension, the data-parallel ranks.
        compute_dtype: of gathered weights and activations.
    """
    backbone = model.backbone
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    exact = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    frozen = _frozen_tower(model)
    for module in frozen:
        module.to(device=mesh.device_type, dtype=compute_dtype)
    for layer in backbone.decoder_layers() + ([] if frozen else backbone.vision_blocks()):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model.score, mesh=mesh, mp_policy=exact)
    whole = {parameter for module in frozen for parameter in module.parameters()}
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    register_fsdp_forward_method(model, "encode")


def _frozen_tower(model: RewardModel) -> list[nn.Module]:
    """Vision tower and projector if neither is trained, else nothing."""
    roles = model.backbone.role_parameters()
    if any(parameter.requires_grad for role in ("vision", "projector") for parameter in roles[role]):
        return []
    modules = model.backbone.role_modules()
    return modules["vision"] + modules["projector"]
