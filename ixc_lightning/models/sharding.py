# SPDX-License-Identifier: Apache-2.0
"""Sharding of a role's network over ranks by FSDP2, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ixc_lightning.models.backbone import Backbone


def shard(
    root: nn.Module,
    backbone: Backbone,
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype,
    exact: Sequence[nn.Module] = (),
    methods: Sequence[str] = (),
) -> None:
    """Shard a role over the mesh, as one root that owns the backbone and all heads.

    Weights, gradients and optimiser states stay in the dtype that the role was built in, divided among the
    ranks; layers are gathered and computed in ``compute_dtype``, and gradients are summed in float32.

    A frozen vision tower and projector are left whole on every rank, in ``compute_dtype``: then a rank whose
    batch has no picture runs the same collectives as the others. A trained tower is sharded, and every rank's
    batches must then hold a picture.

    Args:
        root: a role that is not yet trained; the backbone itself if it has no further heads.
        backbone: the backbone of the role.
        mesh: of one dimension, the data-parallel ranks.
        compute_dtype: of gathered weights and activations.
        exact: heads that compute in float32 nevertheless.
        methods: what is called on the root besides ``forward``.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    float32 = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    frozen = _frozen_tower(backbone)
    for module in frozen:
        module.to(device=mesh.device_type, dtype=compute_dtype)
    for layer in backbone.decoder_layers() + ([] if frozen else backbone.vision_blocks()):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for head in exact:
        fully_shard(head, mesh=mesh, mp_policy=float32)
    whole = {parameter for module in frozen for parameter in module.parameters()}
    fully_shard(root, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for name in methods:
        register_fsdp_forward_method(root, name)


def _frozen_tower(backbone: Backbone) -> list[nn.Module]:
    """Vision tower and projector if neither is trained, else nothing."""
    roles = backbone.role_parameters()
    if any(parameter.requires_grad for role in ("vision", "projector") for parameter in roles[role]):
        return []
    modules = backbone.role_modules()
    return modules["vision"] + modules["projector"]
