# SPDX-License-Identifier: Apache-2.0
"""The benchmarks that need a GPU, run from end to end with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "gpu_reward": ["--rounds", "1", "--passes", "1"],
    "gpu_ppo": ["--rounds", "1", "--prompts", "1", "--samples", "2", "--rows", "2"],
}
NO_GPU = 2


def run(name, *options):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run_measures_both_ways_and_keeps_no_figures(name):
    pytest.importorskip("bitsandbytes")
    kept = BENCHMARKS / "results" / f"{name}.json"
    before = kept.read_bytes() if kept.exists() else None
    ended = run(name, "--tiny", *TINY[name])
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["name"] == name
    assert all(result["ratio"] > 0 and result["a"]["way"] == "shared" for result in told["results"])
    assert (kept.read_bytes() if kept.exists() else None) == before


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", TINY)
def test_without_a_gpu_it_says_what_is_needed(name):
    ended = run(name)
    assert ended.returncode == NO_GPU
    assert "needs one NVIDIA GPU" in ended.stderr
    assert "--tiny" in ended.stderr
