# SPDX-License-Identifier: Apache-2.0
"""Real processes, started and stopped as a cluster does: they go on where they stood, on two ranks or one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ixc_lightning.callbacks.preemption import STATUS
from ixc_lightning.cli.consolidate import consolidate
from ixc_lightning.cli.main import main

STEPS = 6
STOP_BEHIND = 2
BATCH = 8  # pairs of all ranks together
LIMIT = 240  # seconds; a hang becomes an error
RTOL, ATOL = 1e-3, 1e-4  # float32, gradients summed over ranks in another order

pytestmark = [
    pytest.mark.slow,
    # lightning 2.6.6 builds a saved module by calls that jsonargparse 4.53 calls old (2026-11).
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


class Run:
    """The reward recipe on the small digits, in a process group of its own.

    Args:
        model: folder of the model that training starts from.
        digits: folder of the data.
        folder: for checkpoints; a run that goes on has that of the run before.
        name: of its log and export.
        world: how many processes torchrun starts; one starts without it.
        checkpoint: what it goes on from.
    """

    def __init__(
        self, model: Path, digits: Path, folder: Path, *, name: str, world: int = 1, checkpoint: str = "last"
    ) -> None:
        self.metrics = folder / name / "reward/version_0/metrics.csv"
        self.export = folder / name / "exported"
        self.kept = folder / "kept"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={world}", f"--master_port={port}"]
        sharding = "lightning.pytorch.strategies.ModelParallelStrategy"
        words = [
            *(sys.executable, "-P", *(torchrun if world > 1 else [])),
            *("-m", "ixc_lightning", "fit", "--config", "recipes/reward.yaml", "--ckpt_path", checkpoint),
            *("--model.model.source", str(model)),
            *("--model.scheduler.warmup_steps", "2"),
            # A large ε: gradients that are zero but for rounding must not become whole steps.
            *("--model.optimizer.eps", "1e-3"),
            *("--model.optimizer.fused", "false"),
            *("--model.compute_dtype", "float32"),
            *("--data.train", str(digits / "preference/train")),
            *("--data.val", str(digits / "preference/heldout")),
            *("--data.test", "null"),
            *("--data.batch_size", str(BATCH // world)),
            *("--data.eval_batch_size", "8"),
            *("--data.num_workers", "1"),
            *("--trainer.accelerator", "cpu"),
            *("--trainer.devices", str(world)),
            *([f"--trainer.strategy={sharding}"] if world > 1 else []),
            *(["--trainer.strategy.data_parallel_size", str(world)] if world > 1 else []),
            *(["--trainer.strategy.tensor_parallel_size", "1"] if world > 1 else []),
            *("--trainer.max_steps", str(STEPS)),
            *("--trainer.val_check_interval", "4"),
            *("--trainer.num_sanity_val_steps", "0"),
            *("--trainer.inference_mode", "false"),
            *("--trainer.enable_progress_bar", "false"),
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            *("--trainer.logger.save_dir", str(folder / name)),
            *("--trainer.logger.name", "reward"),
            *("--trainer.logger.flush_logs_every_n_steps", "1"),
            *("--trainer.log_every_n_steps", "1"),
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            *("--trainer.callbacks.dirpath", str(self.kept)),
            *("--trainer.callbacks.every_n_train_steps", str(STEPS)),
            *("--trainer.callbacks.save_last", "link"),
            "--trainer.callbacks+=ixc_lightning.callbacks.Preemption",
            *("--export.folder", str(self.export)),
        ]
        folder.mkdir(exist_ok=True)
        self.log = folder / f"{name}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def finish(self, *, status: int = 0) -> None:
        """Wait for its end."""
        assert self.process.wait(LIMIT) == status, self.log.read_text()

    def wait(self, *, behind: int) -> None:
        """Wait until so many steps are in its log."""
        end = time.monotonic() + LIMIT
        while max(self.losses(), default=-1) + 1 < behind:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def end(self) -> None:
        """Kill it, should it live."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(LIMIT)

    def ranks(self) -> list[int]:
        """The processes that torchrun has started."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(one) for one in found.split()]

    def losses(self) -> dict[int, str]:
        """The training loss of each step, as it was written."""
        if not self.metrics.exists():
            return {}
        with self.metrics.open(newline="") as stream:
            return {
                int(row["step"]): row["train/loss"] for row in csv.DictReader(stream) if row.get("train/loss")
            }

    def weights(self) -> dict[str, torch.Tensor]:
        """The exported weights."""
        return load_file(self.export / "model.safetensors")


@pytest.fixture(scope="module")
def start(digits, tiny_folder, tmp_path_factory):
    """Starts runs in a folder by its name; none outlives the tests."""
    root, started = tmp_path_factory.mktemp("launch"), []

    def run(folder: str, name: str, **options) -> Run:
        started.append(Run(tiny_folder, digits, root / folder, name=name, **options))
        return started[-1]

    yield run
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def whole(start):
    """A run of one process that nobody stopped."""
    run = start("never", "whole")
    run.finish()
    assert list(run.losses()) == list(range(STEPS))
    return run


def test_a_run_whose_whole_group_gets_sigterm_saves_and_ends_in_the_bits_of_one_that_did_not(start, whole):
    first = start("stopped", "first")
    first.wait(behind=STOP_BEHIND)
    os.killpg(first.process.pid, signal.SIGTERM)  # the worker of the loader too, as SLURM does
    first.finish(status=STATUS)
    assert STOP_BEHIND <= len(first.losses()) < STEPS
    assert not first.export.exists()
    second = start("stopped", "second")
    second.finish()
    assert min(second.losses()) == max(first.losses()) + 1
    for run in (first, second):
        assert run.losses().items() <= whole.losses().items()
    weights = second.weights()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_sharded_run_that_one_rank_is_told_to_stop_goes_on_on_two_ranks_and_on_one(start, whole, tmp_path):
    first = start("sharded", "first", world=2)
    first.wait(behind=STOP_BEHIND)
    os.kill(first.ranks()[1], signal.SIGUSR1)
    first.finish(status=1)  # torchrun's own, of workers that end with any other than 0
    saved = first.kept / "last.ckpt"
    assert (saved / "meta.pt").exists()
    step = max(first.losses()) + 1
    consolidate(str(saved), str(tmp_path / "one.ckpt"))
    assert torch.load(tmp_path / "one.ckpt", weights_only=True, mmap=True)["global_step"] == step < STEPS

    one = start("alone", "one", checkpoint=str(tmp_path / "one.ckpt"))
    one.finish()
    two = start("sharded", "two", world=2)
    two.finish()
    assert list(one.losses()) == list(two.losses()) == list(range(step, STEPS))
    expected = whole.weights()
    for run in (one, two):
        assert all(torch.allclose(run.weights()[name], expected[name], RTOL, ATOL) for name in expected)

    assert saved.is_symlink()
    main(["export", str(saved), str(tmp_path / "exported")])
    exported = load_file(tmp_path / "exported/model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in two.weights().items())
    statistics = [
        json.loads((folder / "reward_model.json").read_text())
        for folder in (tmp_path / "exported", two.export)
    ]
    assert statistics[0] == statistics[1]
