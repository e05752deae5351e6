# SPDX-License-Identifier: Apache-2.0
"""A step over batches of any sizes, on any ranks, is the step over all their pairs or tokens at once."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from ixc_lightning.models import RewardModel
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.modules import RewardModule, SFTModule
from ixc_lightning.modules.step_count import StepCount
from tests.digits import instruction_data, preference_data, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

SAME = 1e-6  # float32, sums in another order; gradients have entries of about 0.1
ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds


def test_the_mean_over_uneven_batches_of_an_example_by_hand():
    parameter = torch.nn.Parameter(torch.zeros(()))
    count, run = StepCount(), Mock(spec=L.Trainer, accumulate_grad_batches=3, world_size=2)
    # means of 2, 5 and 8 over 1, 4 and 3 pairs a rank: (2 · 1 + 5 · 4 + 8 · 3) / 8; the mean of means is 5
    for pairs, mean in ((1, 2.0), (4, 5.0), (3, 8.0)):
        (parameter * mean * count.share(torch.tensor(float(pairs))) / 3).backward()
    assert count.settle([parameter], run) == 2 * 8
    assert parameter.grad.item() == pytest.approx(5.75)


def test_batches_of_one_size_come_out_to_the_bit():
    gradients = []
    for counted in (True, False):
        parameter, count = torch.nn.Parameter(torch.tensor(0.3)), StepCount()
        for value in (0.1, 0.7):
            share = count.share(torch.tensor(5.0)) if counted else 1.0
            ((parameter * value).sin() * share / 2).backward()
        if counted:
            count.settle([parameter], Mock(spec=L.Trainer, accumulate_grad_batches=2, world_size=1))
        gradients.append(parameter.grad)
    assert torch.equal(*gradients)


def test_a_window_without_a_pair_gives_no_gradient_and_a_first_batch_without_one_does_no_harm():
    empty = torch.tensor(1e-8)
    run = Mock(spec=L.Trainer, accumulate_grad_batches=2, world_size=1)
    for counts, expected in (((empty, empty), 0.0), ((empty, torch.tensor(2.0)), 3.0)):
        parameter, count = torch.nn.Parameter(torch.zeros(())), StepCount()
        for one in counts:
            (parameter * (3.0 if one > 1 else 0.0) * count.share(one) / 2).backward()
        count.settle([parameter], run)
        assert parameter.grad.item() == pytest.approx(expected)


MODULES = {
    "reward": (RewardModule, RewardModel, preference_data),
    "sft": (SFTModule, partial(Backbone, head=True), instruction_data),
}


class Slices(torch.utils.data.Dataset):
    """Batches of the first records of a set, of the sizes given, for one rank."""

    def __init__(self, data, sizes):
        ends = torch.tensor(sizes).cumsum(0).tolist()
        records = data.dataset("train")
        self.batches = [
            data.collator()([records.record(index) for index in range(end - size, end)])
            for end, size in zip(ends, sizes, strict=True)
        ]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def gradients(kind, digits, tiny, folder, sizes, *, rank=0, world=1, **options):
    """Gradients of one step over batches of these sizes, dealt to the ranks in turn, and what is logged."""
    module_type, model_type, data_of = MODULES[kind]
    torch.manual_seed(0)
    module = module_type(partial(model_type, str(tiny)), optimizer=partial(SGD, lr=0.0))
    data = data_of(Path(digits), Path(tiny), val=None)
    data.setup("validate")

    class Given(L.LightningDataModule):
        domains = data.domains

        def train_dataloader(self):
            batches = Slices(data, sizes)
            batches.batches = batches.batches[rank::world]
            return DataLoader(batches, batch_size=None)

    run = trainer(
        folder,
        max_steps=1,
        accumulate_grad_batches=len(sizes) // world,
        use_distributed_sampler=False,
        limit_val_batches=0,
        **options,
    )
    run.fit(module, Given())
    found = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return found, run.logged_metrics


@pytest.mark.parametrize("kind", MODULES)
def test_batches_of_uneven_sizes_accumulate_to_the_step_over_all_of_them(kind, digits, tiny_folder, tmp_path):
    plain, once = gradients(kind, digits, tiny_folder, tmp_path / "plain", [12])
    split, parts = gradients(kind, digits, tiny_folder, tmp_path / "split", [1, 7, 4])
    assert max(gradient.abs().max() for gradient in plain.values()) > 1e-3
    assert plain.keys() == split.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=SAME, msg=name)
    name = {"reward": "train/pairs_per_step", "sft": "train/response_tokens_per_step"}[kind]
    assert once[name] == parts[name]
    if kind == "reward":
        assert once[name] == 12
    assert parts["train/gradient_norm"].item() == pytest.approx(once["train/gradient_norm"].item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODULES)
def test_uneven_batches_on_two_ranks_make_the_step_of_one(kind, digits, tiny_folder, tmp_path):
    """Rank 0 has batches of 1 and 4 records, rank 1 of 5 and 2."""
    plain, _ = gradients(kind, digits, tiny_folder, tmp_path / "plain", [12])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = json.dumps([kind, str(digits), str(tiny_folder), str(tmp_path), [1, 5, 4, 2]])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.modules.test_step_count", words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    shared = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert shared.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=SAME, msg=name)


def _rank(words):
    kind, digits, tiny, folder, sizes = json.loads(words)
    rank = int(os.environ["LOCAL_RANK"])
    strategy = {"strategy": "ddp_find_unused_parameters_true", "devices": 2}
    found, _ = gradients(kind, digits, tiny, Path(folder) / "two", sizes, rank=rank, world=2, **strategy)
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")


if __name__ == "__main__":
    _rank(sys.argv[1])
