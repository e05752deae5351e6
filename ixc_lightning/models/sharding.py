# SPDX-License-Identifier: Apache-2.0
"""Sharding of a role's network over ranks by FSDP2, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.late_weights import load_late
from ixc_lightning.models.loading import weights_later
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import InputError, Prompts


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

    A frozen vision tower and projector are in ``compute_dtype``, and left whole on every rank unless the
    backbone says ``frozen_tower="sharded"``: then every call of ``encode`` gathers them while it lasts. A
    trained tower is sharded as part of the root. Either way a rank whose batch has no picture runs the same
    collectives as the others, so that a tower is gathered as a whole, not layer by layer. Each forward pass
    gives the weights of a trained one a gradient, if only 0, so that all ranks reduce the same ones.

    Of a network that several voices share (``one_base``), the owner is the root, and has all its voices by
    then; their heads are roots of their own.

    Args:
        root: a role that is not yet trained; the backbone itself if it has no further heads.
        backbone: the backbone of the role.
        mesh: of one dimension, the data-parallel ranks.
        compute_dtype: of gathered weights and activations.
        exact: heads that compute in float32 nevertheless.
        methods: what is called on the root besides ``forward``.

    Raises:
        InputError: weights are missing, or quantised ones would be rounded.
    """
    check_storage(backbone, compute_dtype)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    frozen = _frozen_tower(backbone)
    for module in frozen:
        if any(weight.is_meta for weight in module.parameters()):
            module.to(dtype=compute_dtype)
        else:
            module.to(device=mesh.device_type, dtype=compute_dtype)
    for layer in backbone.decoder_layers():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for head in exact:
        shard_head(head, mesh)
    is_divided = backbone.frozen_tower == "sharded"
    if is_divided and frozen:
        _divide(backbone, frozen, mesh, policy)
    whole = {parameter for module in frozen for parameter in module.parameters() if not is_divided}
    fully_shard(root, mesh=mesh, mp_policy=policy, ignored_params=whole)
    load_late(root, backbone.model, _device_of(mesh))
    for name in methods:
        register_fsdp_forward_method(root, name)
    if _trained_tower(backbone):
        # before the hooks of FSDP, which may divide the weights again
        backbone.register_forward_hook(_with_trained_tower, prepend=True)


@contextmanager
def built_for(mesh: DeviceMesh | None) -> Iterator[None]:
    """Build roles inside without their weights if they are to be sharded: ``shard`` loads them."""
    with nullcontext() if mesh is None else weights_later():
        yield


def resharded(root: nn.Module) -> None:
    """Divide all weights again: a forward pass without gradients leaves those of the root gathered."""
    for part in root.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _device_of(mesh: DeviceMesh) -> torch.device:
    """This rank's device."""
    kind = mesh.device_type
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.cuda.current_device())


def check_storage(backbone: Backbone, compute_dtype: torch.dtype) -> None:
    """Make sure that packed weights are gathered bit by bit: in another dtype they would be rounded.

    Raises:
        InputError: they are stored in another dtype than the one of computation.
    """
    if backbone.quantisation is not None and backbone.base.dtype != compute_dtype:
        stored, computed = (
            str(dtype).removeprefix("torch.") for dtype in (backbone.base.dtype, compute_dtype)
        )
        raise InputError(
            f"quantisation: {backbone.quantisation} packs its numbers into {stored}, and compute_dtype: "
            f"{computed} would round them when they are gathered: give the model dtype: {computed}, or "
            f"compute_dtype: {stored}"
        )


def shard_head(head: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a head that computes in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    fully_shard(head, mesh=mesh, mp_policy=policy)


def _divide(
    backbone: Backbone, tower: Sequence[nn.Module], mesh: DeviceMesh, policy: MixedPrecisionPolicy
) -> None:
    """Shard a frozen tower and projector, and let ``encode`` gather them, with or without a picture."""
    parts: list[FSDPModule] = []
    for module in tower:
        if not any(module in [*other.modules()][1:] for other in tower):  # a projector inside the tower
            parts.append(fully_shard(module, mesh=mesh, mp_policy=policy))
    encode = backbone.encode

    def gathering(prompts: Prompts) -> Visuals | None:
        for part in parts:
            # pictures that are encoded in parts find it whole each time
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            return encode(prompts)
        finally:
            for part in parts:
                part.reshard()

    # in the place of the method, as ``register_fsdp_forward_method`` does it
    backbone.encode = gathering  # type: ignore[method-assign]


def _with_trained_tower(
    backbone: Backbone, inputs: Any, hidden: Float[Tensor, "B L D"]
) -> Float[Tensor, "B L D"]:
    """The hidden states plus 0 times the trained weights of tower and projector: h + Σ 0·w.

    FSDP reduces the gradients that there are. Where one rank's batch has no picture, or its family leaves
    weights of the tower unused for one, its ranks would reduce different ones, and hang or mix them up.
    """
    if not torch.is_grad_enabled():
        return hidden
    return torch.add(hidden, sum(weight.sum() for weight in _trained_tower(backbone)), alpha=0.0)


def _trained_tower(backbone: Backbone) -> list[nn.Parameter]:
    """The weights of vision tower and projector that are trained."""
    roles = backbone.role_parameters()
    return [weight for role in ("vision", "projector") for weight in roles[role] if weight.requires_grad]


def _frozen_tower(backbone: Backbone) -> list[nn.Module]:
    """Vision tower and projector if neither is trained, else nothing."""
    if _trained_tower(backbone):
        return []
    modules = backbone.role_modules()
    return modules["vision"] + modules["projector"]
