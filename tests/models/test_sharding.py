# SPDX-License-Identifier: Apache-2.0
"""Two processes that share a model train it as one process does, whatever modalities each of them meets."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ixc_lightning.models import Backbone, RewardModel

RTOL, ATOL = 1e-4, 1e-5  # float32, gradients summed over ranks in another order
LIMIT = 120  # seconds; the two processes give up on each other well before
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def _run(tmp_path, *, world, **options):
    """Train in ``world`` processes (``tests.models.sharded_fit``) and give back what the first one wrote."""
    out = tmp_path / f"{options['task']}-{options.get('compute_dtype', 'float32')}-{world}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world}", f"--master_port={port}"]
    command = [
        sys.executable,
        *launcher,
        "-m",
        "tests.models.sharded_fit",
        json.dumps({**options, "out": str(out)}),
    ]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return out, json.loads((out / "result.json").read_text())


def _assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=RTOL, atol=ATOL, msg=name)


@pytest.fixture(scope="module")
def reward_runs(digits, tiny_folder, tmp_path_factory):
    """The same fit of a reward model on one process and on two; rank 0 of two meets text only."""
    folder = tmp_path_factory.mktemp("reward")
    options = {"task": "reward", "data": str(digits), "model": str(tiny_folder)}
    return [_run(folder, world=world, **options) for world in (1, 2)]


def test_losses_of_two_ranks_equal_those_of_one_process_on_mixed_batches(reward_runs):
    (_, one), (_, two) = reward_runs
    assert two["text_only_ranks"] == [True, False]
    assert len(one["losses"]) == one["steps"]
    assert two["losses"] == pytest.approx(one["losses"], rel=RTOL, abs=ATOL)


def test_the_export_of_two_ranks_equals_that_of_one_process(reward_runs):
    one, two = (RewardModel.from_pretrained(out / "export") for out, _ in reward_runs)
    _assert_same(two.state_dict(), one.state_dict())


def test_training_moved_the_exported_model_away_from_its_start(reward_runs, tiny_folder):
    start, end = RewardModel(str(tiny_folder)), RewardModel.from_pretrained(reward_runs[1][0] / "export")
    name = "backbone.model.language_model.layers.0.mlp.up_proj.weight"
    assert (start.state_dict()[name] - end.state_dict()[name]).abs().max() > 100 * ATOL


def test_the_frozen_tower_is_whole_on_every_rank_and_the_rest_is_divided(reward_runs):
    sharded = set(reward_runs[1][1]["sharded"])
    assert sharded
    assert not any("vision" in name or "projector" in name for name in sharded)
    assert {"model.score.weight", "model.backbone.model.language_model.embed_tokens.weight"} <= sharded


def test_a_sharded_run_is_resumed_from_its_own_checkpoint(reward_runs):
    assert reward_runs[1][1]["resumed_step"] == reward_runs[1][1]["steps"] + 1


@pytest.mark.parametrize("task", ["reward", "sft"])
def test_bfloat16_computation_keeps_float32_weights_scores_and_losses(task, digits, tiny_folder, tmp_path):
    _, result = _run(
        tmp_path, world=2, task=task, data=str(digits), model=str(tiny_folder), compute_dtype="bfloat16"
    )
    assert result["output_dtype"] == "torch.float32"
    assert set(result["weight_dtypes"]) == {"torch.float32"}
    assert all(loss > 0 for loss in result["losses"])


def test_supervised_fine_tuning_on_two_ranks_equals_one_process_on_mixed_batches(
    digits, tiny_folder, tmp_path
):
    options = {"task": "sft", "data": str(digits), "model": str(tiny_folder)}
    one_out, one = _run(tmp_path, world=1, **options)
    two_out, two = _run(tmp_path, world=2, **options)
    assert two["losses"] == pytest.approx(one["losses"], rel=RTOL, abs=ATOL)
    first, second = (Backbone(str(out / "export"), head=True).state_dict() for out in (one_out, two_out))
    _assert_same(second, first)
