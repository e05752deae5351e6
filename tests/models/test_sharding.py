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

from ixc_lightning.cli.consolidate import consolidate, read_sharded
from ixc_lightning.models import Backbone, RewardModel

RTOL, ATOL = 1e-5, 1e-6  # float32, gradients summed over ranks in another order
FEW, MANY = 3, 50  # steps
LIMIT = 300  # seconds; the two processes give up on each other well before
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
    """The same fit of a reward model on one process and on two; rank 0 of two meets text only.

    Both are then resumed from the checkpoint of the two, of which the one process gets a single file.
    """
    folder = tmp_path_factory.mktemp("reward")
    options = {"task": "reward", "data": str(digits), "model": str(tiny_folder)}
    two = _run(folder, world=2, **options, resume_from="last.ckpt")
    consolidate(str(two[0] / "last.ckpt"), str(folder / "one.ckpt"))
    one = _run(folder, world=1, **options, resume_from=str(folder / "one.ckpt"))
    return one, two


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


def test_a_frozen_tower_may_be_divided_too(reward_runs, digits, tiny_folder, tmp_path):
    one, whole = reward_runs
    out, two = _run(
        tmp_path,
        world=2,
        task="reward",
        data=str(digits),
        model=str(tiny_folder),
        frozen_tower="sharded",
        vision_patches_at_once=1,
    )
    assert two["text_only_ranks"] == [True, False]
    assert two["losses"] == pytest.approx(one[1]["losses"], rel=RTOL, abs=ATOL)
    assert two["norms"] == pytest.approx(one[1]["norms"], rel=RTOL)
    assert set(two["sharded"]) > set(whole[1]["sharded"])
    assert {"vision", "projector"} <= {
        part for name in two["sharded"] for part in ("vision", "projector") if part in name
    }
    _assert_same(*(RewardModel.from_pretrained(each / "export").state_dict() for each in (out, one[0])))


def test_the_gradient_norms_of_two_ranks_equal_those_of_one_process(reward_runs):
    (_, one), (_, two) = reward_runs
    assert len(one["norms"]) == one["steps"]
    assert two["norms"] == pytest.approx(one["norms"], rel=RTOL)


def test_a_checkpoint_of_two_ranks_is_resumed_by_two_and_by_one_alike(reward_runs):
    (_, one), (_, two) = reward_runs
    assert one["resumed_step"] == two["resumed_step"] == two["steps"] + 2
    assert len(one["resumed_losses"]) == 2
    assert one["resumed_losses"] == pytest.approx(two["resumed_losses"], rel=RTOL, abs=ATOL)
    assert one["resumed_losses"] != pytest.approx(
        one["losses"][:2], rel=RTOL
    )  # of the same batches, at the start


def test_a_sharded_checkpoint_is_exported_without_the_ranks_that_wrote_it(reward_runs, tiny_folder, tmp_path):
    out = reward_runs[1][0]
    saved = read_sharded(out / "last.ckpt", only_weights=True)
    exported = RewardModel.from_pretrained(out / "export").state_dict()
    _assert_same(
        {name.removeprefix("model."): value for name, value in saved["state_dict"].items()}, exported
    )
    assert "optimizer_states" not in saved


@pytest.mark.parametrize("task", ["reward", "sft"])
def test_a_trained_tower_learns_from_one_rank_s_pictures_beside_a_rank_of_text_alone(
    task, digits, tiny_folder, tmp_path
):
    options = {"task": task, "data": str(digits), "model": str(tiny_folder), "freeze": []}
    _, one = _run(tmp_path, world=1, **options, steps=FEW)
    _, two = _run(tmp_path, world=2, **options, steps=MANY)
    assert two["text_only_ranks"] == [True, False]
    assert any("vision" in name for name in two["sharded"])
    assert len(two["losses"]) == MANY
    assert two["losses"][:FEW] == pytest.approx(one["losses"], rel=RTOL, abs=ATOL)
    assert two["norms"][:FEW] == pytest.approx(one["norms"], rel=RTOL)


def test_ranks_may_encode_their_pictures_in_other_numbers_of_parts(digits, tiny_folder, tmp_path):
    options = {"task": "reward", "data": str(digits), "model": str(tiny_folder), "freeze": []}
    _, one = _run(tmp_path, world=1, **options)
    _, two = _run(tmp_path, world=2, **options, vision_patches_at_once=1)
    assert two["text_only_ranks"] == [True, False]  # no part, and one for each picture
    assert two["losses"] == pytest.approx(one["losses"], rel=RTOL, abs=ATOL)
    assert two["norms"] == pytest.approx(one["norms"], rel=RTOL)


def test_torch_s_first_fsdp_trains_a_reward_model_as_one_process_does(digits, tiny_folder, tmp_path):
    options = {"task": "reward", "data": str(digits), "model": str(tiny_folder), "flat": True}
    (one_out, one), (two_out, two) = (_run(tmp_path, world=world, **options) for world in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], rel=RTOL)
    assert two["norms"] == pytest.approx(one["norms"], rel=RTOL)
    first, second = (
        torch.load(out / "last.ckpt", weights_only=True)["state_dict"] for out in (one_out, two_out)
    )
    _assert_same(second, first)


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
    two_out, two = _run(tmp_path, world=2, **options, chunk=3)  # more chunks on one rank than on the other
    assert two["losses"] == pytest.approx(one["losses"], rel=RTOL, abs=ATOL)
    first, second = (Backbone(str(out / "export"), head=True).state_dict() for out in (one_out, two_out))
    _assert_same(second, first)
