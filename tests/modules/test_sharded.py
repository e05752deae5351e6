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

from ixc_lightning.cli.consolidate import consolidate
from ixc_lightning.models import LoRA, RewardModel
from ixc_lightning.models.adapters import adapter_weights

RTOL, ATOL = 1e-5, 1e-5  # float32, gradients summed over ranks in another order
LIMIT = 300  # seconds; the two processes give up on each other well before
ROOT = Path(__file__).parents[2]
LOCAL = ("seconds", "memory", "explained_variance", "time")
"""What is of the first rank alone."""
MANY = 50
FEW = 3


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


def _assert_same_logs(shared, single):
    for ours, theirs in zip(shared, single, strict=True):
        names = [name for name in theirs if not any(word in name for word in LOCAL)]
        assert {"train/kl", "train/score"} <= set(names)
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=RTOL, abs=ATOL), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tower"),
    [
        ("PPOModule", "whole"),
        pytest.param("RLOOModule", "whole", marks=pytest.mark.long),
        ("GRPOModule", "sharded"),
    ],
)
def test_two_ranks_with_unlike_prompts_learn_as_one_process(kind, tower, tiny, tmp_path):
    options = {"kind": kind, "model": tiny("internvl").folder, "frozen_tower": tower}
    two, shared = _run(tmp_path / "two", world=2, **options, resume_from="last.ckpt")
    consolidate(str(tmp_path / "two/last.ckpt"), str(tmp_path / "one.ckpt"))
    one, single = _run(tmp_path / "one", world=1, **options, resume_from=str(tmp_path / "one.ckpt"))
    assert single["sharded"] == 0
    assert shared["sharded"] > 20
    assert shared["divided_towers"] == (tower == "sharded")
    assert shared["looks"] == single["looks"]  # by roles whose towers are found to be the same
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=RTOL, atol=ATOL, msg=name)
    assert len(shared["logged"]) == len(single["logged"])
    _assert_same_logs(shared["logged"], single["logged"])
    assert shared["validation"] == pytest.approx(single["validation"], rel=RTOL, abs=ATOL)
    assert {"val/greedy_score", "val/sampled_length"} <= set(shared["validation"])
    assert shared["kl_coef"] == pytest.approx(single["kl_coef"], rel=RTOL)
    for name, moments in single["scale"].items():
        assert shared["scale"][name] == pytest.approx(moments, rel=RTOL, abs=ATOL)
    # one process goes on from the checkpoint of the two as they do themselves
    assert shared["resumed_step"] == single["resumed_step"] == 3
    _assert_same_logs(shared["resumed"], single["resumed"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quantisation"),
    [("PPOModule", None), pytest.param("GRPOModule", None, marks=pytest.mark.long), ("PPOModule", "nf4")],
)
def test_roles_on_one_sharded_base_learn_as_one_process(kind, quantisation, tiny, tmp_path):
    folder = tiny("internvl").folder
    options = {"kind": kind, "model": folder, "judge": _adapted_judge(folder, tmp_path / "judge")}
    options["quantisation"] = quantisation
    two, shared = _run(tmp_path / "two", world=2, **options, resume_from="last.ckpt")
    consolidate(str(tmp_path / "two/last.ckpt"), str(tmp_path / "one.ckpt"))
    one, single = _run(tmp_path / "one", world=1, **options, resume_from=str(tmp_path / "one.ckpt"))
    assert shared["on_one_base"] == single["on_one_base"] == 3 + (kind == "PPOModule")
    assert shared["sharded"] > 20
    assert one.keys() == two.keys()
    assert all(".lora_" in name or ".value." in name for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=RTOL, atol=ATOL, msg=name)
    _assert_same_logs(shared["logged"], single["logged"])
    assert shared["validation"] == pytest.approx(single["validation"], rel=RTOL, abs=ATOL)
    # one process goes on from the checkpoint of the two as they do themselves
    assert shared["resumed_step"] == single["resumed_step"] == 3
    _assert_same_logs(shared["resumed"], single["resumed"])


def _adapted_judge(model, folder):
    """A folder with the adapters and the head of a reward model that are not what they start from."""
    torch.manual_seed(1)
    judge = RewardModel(model, adapter=LoRA(rank=2, saved_as="adapter"))
    with torch.no_grad():
        for weight in adapter_weights(judge.backbone.base, "default").values():
            weight.normal_(std=0.1)
    judge.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_rank_of_text_alone_answers_and_learns_beside_one_of_pictures_with_trained_towers(tiny, tmp_path):
    """The policy's own answers, a critic that warms up alone, and as many iterations as a hang would need."""
    options = {"kind": "PPOModule", "model": tiny("internvl").folder, "trains_tower": True}
    _, single = _run(tmp_path / "one", world=1, **options, steps=FEW)
    _, shared = _run(tmp_path / "two", world=2, **options, steps=MANY)
    assert len(shared["logged"]) == MANY
    assert "train/policy_loss" not in single["logged"][0]
    assert "train/gradient_norm" in single["logged"][1]
    _assert_same_logs(shared["logged"][:FEW], single["logged"])
