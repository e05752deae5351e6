# SPDX-License-Identifier: Apache-2.0
"""Two processes that share a policy answer as one process that has it whole."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ixc_lightning.rollout.gathering import gathered
from tests.rollout.sharded_rollout import KINDS, LENGTHS

LIMIT = 120  # seconds; the two processes give up on each other well before
ROOT = Path(__file__).parents[2]


def test_a_module_that_is_not_sharded_is_left_as_it_is():
    module = torch.nn.Linear(2, 2)
    before = dict(module.named_parameters())
    with gathered(module):
        assert dict(module.named_parameters()) == before


def _answers(model, out, *, world):
    options = json.dumps({"model": model, "out": str(out)})
    launcher = []
    if world > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world}", f"--master_port={port}"]
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.rollout.sharded_rollout", options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    files = [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in (0, 1)]
    return files[0] | files[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
def test_a_sharded_policy_answers_as_a_whole_one_before_and_after_training(family, tiny, tmp_path):
    """One rank has text and few tokens, the other pictures and many; neither waits for the other."""
    model = tiny(family).folder
    one, two = (_answers(model, tmp_path / f"world-{world}", world=world) for world in (1, 2))
    assert one.keys() == two.keys() == {"0/0", "0/1", "1/0", "1/1"}
    for name, answers in one.items():
        rank = int(name[0])
        assert [len(row) for row in two[name]["tokens"]] == [LENGTHS[rank]] * 2 * len(KINDS[rank])
        assert two[name]["tokens"] == answers["tokens"]
        assert answers["sharded"] == 0
        assert two[name]["sharded"] > 10  # the policy is divided again when the answers are there
    assert one["1/0"]["tokens"] != one["1/1"]["tokens"]
