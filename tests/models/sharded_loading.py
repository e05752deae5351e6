# SPDX-License-Identifier: Apache-2.0
"""One process of two that load a model that neither of them holds as a whole; it measures its memory."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from ixc_lightning.models import Backbone
from ixc_lightning.models.sharding import built_for, shard

TIMEOUT = timedelta(seconds=120)  # a hang becomes an error
EVERY = 0.002  # seconds between two looks


def own_bytes() -> int:
    """Memory of this process that is no file's: pages of a mapped file can be dropped at any time."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def most(function: Callable[[], Any]) -> tuple[Any, int]:
    """What the function gives, and by how much memory grew at most meanwhile."""
    start, peak, done = own_bytes(), 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, own_bytes() - start)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        made = function()
    finally:
        done.set()
        watcher.join()
    return made, max(peak, own_bytes() - start)


def main(options: dict[str, Any]) -> None:
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    source = options["model"]
    # in the dtype of the file a whole model would be mapped from it on a CPU, and take no memory of its own
    build = {"freeze": (), "weights": options["weights"], "dtype": "bfloat16"}

    def load() -> Backbone:
        torch.manual_seed(0)
        with built_for(mesh):
            backbone = Backbone(source, **build)
        shard(backbone, backbone, mesh, compute_dtype=torch.bfloat16)
        return backbone

    Backbone(options["warm_up"])  # what is imported late is no part of it
    ours, sharded = most(load)
    torch.manual_seed(0)
    expected, whole = most(lambda: Backbone(source, **build))
    weights = dict(expected.named_parameters())
    full = {name: p.full_tensor() for name, p in ours.named_parameters() if isinstance(p, DTensor)}
    result = {
        "size": sum(weight.nbytes for weight in weights.values()),
        "sharded": sharded,
        "whole": whole,
        "same": weights.keys() == full.keys() and all(torch.equal(full[n], weights[n]) for n in weights),
    }
    peaks = [None] * distributed.get_world_size()
    distributed.all_gather_object(peaks, result)
    if distributed.get_rank() == 0:
        Path(options["out"], "result.json").write_text(json.dumps(peaks))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
