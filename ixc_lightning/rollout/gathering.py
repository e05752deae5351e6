# SPDX-License-Identifier: Apache-2.0
"""A sharded policy made whole for as long as it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule

from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.one_base import Voice


@contextmanager
def gathered(role: nn.Module) -> Iterator[None]:
    """Keep every layer of a role that FSDP2 has sharded on every rank, as one full copy; but no vision tower.

    Layers are then gathered once instead of once for every token, and no rank has to wait for another, so
    each may stop when its own responses end. Inside, call a method of the role that is registered as one of
    FSDP's (``models.sharding.shard``). A role that is not sharded is left as it is.
    """
    root = role.owner if isinstance(role, Voice) else role
    tower = {
        part
        for module in root.modules()
        if isinstance(module, Backbone)
        for name in ("vision", "projector")
        for part in module.role_modules()[name]
    }
    parts = [module for module in root.modules() if isinstance(module, FSDPModule) and module not in tower]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # FSDP2's own default: a root keeps its parameters until the backward pass has used them
            part.set_reshard_after_forward(part is not root, recurse=False)
