# SPDX-License-Identifier: Apache-2.0
"""Two processes that shard a model with adapters train and export what one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.sharding import check_storage
from ixc_lightning.types import InputError

RTOL, ATOL = 1e-5, 1e-6  # float32, gradients summed over ranks in another order
LIMIT = 300  # seconds; the two processes give up on each other well before


def _run(world, out, **options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world}", f"--master_port={port}"]
    words = ["-m", "tests.models.sharded_adapters", json.dumps({**options, "out": str(out)})]
    ended = subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", [None, "nf4"])
def test_adapters_train_on_two_sharded_ranks_as_on_one_and_export_merged(
    quantisation, digits, tiny_folder, tmp_path
):
    options = {"task": "reward", "data": str(digits), "model": str(tiny_folder), "quantisation": quantisation}
    one, two = (_run(world, tmp_path / str(world), **options) for world in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], rel=RTOL)
    assert any(".lora_B." in name for name in two["sharded"])
    first, second = (RewardModel.from_pretrained(tmp_path / world / "export").state_dict() for world in "12")
    start = RewardModel(str(tiny_folder)).state_dict()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=RTOL, atol=ATOL, msg=name)
    adapted = next(name for name in first if "language_model" in name and name.endswith("q_proj.weight"))
    assert not torch.equal(first[adapted], start[adapted])


def test_packed_weights_that_gathering_would_round_are_refused(tiny_folder):
    backbone = Backbone(str(tiny_folder), quantisation="nf4")
    message = r"nf4 packs its numbers into float32, and compute_dtype: bfloat16 would round"
    with pytest.raises(InputError, match=message):
        check_storage(backbone, torch.bfloat16)
    check_storage(backbone, torch.float32)
