# SPDX-License-Identifier: Apache-2.0
"""Two processes that share all four networks learn as one process does, however unlike their prompts are."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RTOL, ATOL = 1e-4, 1e-5  # float32, gradients summed over ranks in another order
LIMIT = 150  # seconds; the two processes give up on each other well before
ROOT = Path(__file__).parents[2]
LOCAL = ("seconds", "memory", "explained_variance", "gradient_norm", "time")
"""What is of the first rank alone, or depends on summation order more than the weights do."""


def _run(out, *, world, **options):
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world}", f"--master_port={port}"]
    words = json.dumps({**options, "out": str(out)})
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.modules.sharded_on_policy", words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    return torch.load(out / "state.pt", weights_only=True), json.loads((out / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PPOModule", "RLOOModule", "GRPOModule"])
def test_two_ranks_with_unlike_prompts_learn_as_one_process(kind, tiny, tmp_path):
    options = {"kind": kind, "model": tiny("internvl").folder}
    one, single = _run(tmp_path / "one", world=1, **options)
    two, shared = _run(tmp_path / "two", world=2, **options)
    assert single["sharded"] == 0
    assert shared["sharded"] > 20
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=RTOL, atol=ATOL, msg=name)
    for ours, theirs in zip(shared["logged"], single["logged"], strict=True):
        names = [name for name in theirs if not any(word in name for word in LOCAL)]
        assert {"train/kl", "train/policy_loss", "train/score"} <= set(names)
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=ATOL), name
    assert shared["validation"] == pytest.approx(single["validation"], rel=1e-3, abs=ATOL)
    assert {"val/greedy_score", "val/sampled_length"} <= set(shared["validation"])
    assert shared["kl_coef"] == pytest.approx(single["kl_coef"], rel=RTOL)
    for name, moments in single["scale"].items():
        assert shared["scale"][name] == pytest.approx(moments, rel=1e-3, abs=ATOL)
    assert shared["resumed_step"] == single["resumed_step"] == 3
