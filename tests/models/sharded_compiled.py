# SPDX-License-Identifier: Apache-2.0
"""One of the two processes of ``tests.models.test_compiling`` that shard a backbone with compiled layers."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from ixc_lightning.models import Backbone
from ixc_lightning.models.sharding import shard

WORLD = 2
TIMEOUT = timedelta(seconds=300)  # a hang becomes an error; compilation takes its time on a busy machine
SIZES = ((3, 9), (2, 20), (4, 13))


def learn(rank: int, source: str, out: str) -> None:
    """Take the same steps with a plain network and a sharded, compiled one; write how far they are apart."""
    store = distributed.FileStore(f"{out}/store", WORLD)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("data_parallel",))
    plain = Backbone(source, freeze=()).train()
    sharded = Backbone(source, freeze=(), compile="aot_eager", gradient_checkpointing=True).train()
    names = list(sharded.state_dict())
    shard(sharded, sharded, mesh["data_parallel"], compute_dtype=torch.float32)
    again = _count_checkpoints(sharded)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (plain, sharded)]
    losses, apart = [], []
    for step, (rows, length) in enumerate(SIZES):
        # the same batch on every rank: the mean of their gradients is that of one
        ids = torch.randint(42, 90, (rows, length), generator=torch.Generator().manual_seed(step))
        pair = []
        for network, optimizer in zip((plain, sharded), optimizers, strict=True):
            optimizer.zero_grad()
            loss = network(ids, torch.ones_like(ids).bool(), {}, None).square().mean()
            loss.backward()
            optimizer.step()
            pair.append(loss.item())
        losses.append(pair)
        whole = dict(sharded.named_parameters())
        apart += [
            (whole[name].full_tensor() - weight).abs().max().item()
            for name, weight in plain.named_parameters()
        ]
    if rank == 0:
        result = {
            "losses": losses,
            "apart": max(apart),
            "graphs": counters["stats"]["unique_graphs"],
            "again": len(again),
            "same_names": names == list(plain.state_dict()) == list(sharded.state_dict()),
        }
        Path(out, "result.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


def _count_checkpoints(network: Backbone) -> list[nn.Module]:
    """A list that grows by each layer whose activations are not kept."""
    found: list[nn.Module] = []
    for layer in network.decoder_layers():
        own = layer._gradient_checkpointing_func

        def counted(*arguments, own=own, layer=layer, **settings):
            found.append(layer)
            return own(*arguments, **settings)

        layer._gradient_checkpointing_func = counted
    return found
