# SPDX-License-Identifier: Apache-2.0
"""Two ranks load a model that neither of them ever holds as a whole, and have all of it together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen2Model

LIMIT = 300  # seconds; the two processes give up on each other well before
MOST = 0.75  # of the model's size: a half, and the parts of one layer of 12 while they are read
LEAST = 0.8  # what a process needs that loads the model as a whole, less what it gave back before


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 200 MB, in half the precision of 100 MB, in 12 layers."""
    folder = tmp_path_factory.mktemp("large")
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=12,
        num_attention_heads=10,
        num_key_value_heads=2,
    )
    Qwen2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_no_rank_ever_holds_the_whole_model(weights, large, tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": str(large), "warm_up": tiny("qwen2").folder, "weights": weights, "out": str(tmp_path)}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.models.sharded_loading", json.dumps(options)],
        cwd=Path(__file__).parents[2],
        # what is freed goes back to the system at once, or it would be counted, now and then
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    for rank in json.loads((tmp_path / "result.json").read_text()):
        assert rank["size"] > 100e6
        assert rank["same"]
        assert rank["sharded"] < MOST * rank["size"]
        assert rank["whole"] > LEAST * rank["size"]
