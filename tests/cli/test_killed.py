# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, and killed again, goes on as if nothing had happened: to the last bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.digits import PAIRS

BATCH = 4
EPOCH = PAIRS // BATCH
STEPS = 2 * EPOCH
CHECKPOINT_EVERY = 5
FIRST_KILL, SECOND_KILL = 7, EPOCH + 5
"""Steps, inside the first and the second epoch, behind which the runs are killed; no checkpoint is there."""
TIMEOUT = 120


class Run:
    """The reward recipe in a process group of its own, on the small digits.

    Args:
        model: folder of the model that training starts from.
        digits: folder of the data.
        folder: for checkpoints and the exported model; a run that goes on has that of the run before.
        name: of its log.
        workers: processes of the loader.
    """

    def __init__(self, model: Path, digits: Path, folder: Path, *, name: str, workers: int) -> None:
        self.metrics = folder / name / "reward/version_0/metrics.csv"
        self.export = folder / "exported"
        words = [
            *(sys.executable, "-P", "-m", "ixc_lightning", "fit", "--config", "recipes/reward.yaml"),
            *("--ckpt_path", "last"),
            *("--model.model.source", str(model)),
            *("--model.scheduler.warmup_steps", "3"),
            *("--data.train", str(digits / "preference/train")),
            *("--data.val", str(digits / "preference/heldout")),
            *("--data.test", "null"),
            *("--data.batch_size", str(BATCH)),
            *("--data.eval_batch_size", "8"),
            *("--data.num_workers", str(workers)),
            *("--data.group_by_length", "3"),
            *("--trainer.accelerator", "cpu"),
            *("--trainer.max_epochs", "2"),
            *("--trainer.max_steps", str(STEPS)),
            *("--trainer.val_check_interval", str(EPOCH - 3)),
            *("--trainer.num_sanity_val_steps", "0"),
            *("--trainer.log_every_n_steps", "1"),
            *("--trainer.enable_progress_bar", "false"),
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            *("--trainer.logger.save_dir", str(folder / name)),
            *("--trainer.logger.name", "reward"),
            *("--trainer.logger.flush_logs_every_n_steps", "1"),
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            *("--trainer.callbacks.dirpath", str(folder / "checkpoints")),
            *("--trainer.callbacks.every_n_train_steps", str(CHECKPOINT_EVERY)),
            *("--trainer.callbacks.save_last", "true"),
            *("--export.folder", str(self.export)),
        ]
        # Sums of floats depend on the number of threads, which else follows from that of the workers.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.log = folder / f"{name}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self.process.wait(TIMEOUT) == 0, self.log.read_text()

    def kill(self, *, behind: int) -> None:
        """Kill it and its workers, without a word, as soon as ``behind`` steps are in its log."""
        end = time.monotonic() + TIMEOUT
        while max(self.losses(), default=-1) + 1 < behind:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)
        self.end()
        assert self.process.returncode == -signal.SIGKILL

    def end(self) -> None:
        """Kill it, should it live."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(TIMEOUT)

    def losses(self) -> dict[int, str]:
        """The training loss of each step, as it was written."""
        return {step: row["train/loss"] for step, row in self.logged().items() if "train/loss" in row}

    def logged(self) -> dict[int, dict[str, str]]:
        """What the log says of each step, speeds aside."""
        steps: dict[int, dict[str, str]] = {}
        if not self.metrics.exists():
            return steps
        with self.metrics.open(newline="") as stream:
            for row in csv.DictReader(stream):
                values = steps.setdefault(int(row["step"]), {})
                values |= {
                    name: value for name, value in row.items() if value and not name.endswith("_per_second")
                }
        return steps

    def weights(self) -> dict[str, torch.Tensor]:
        """The exported weights."""
        return load_file(self.export / "model.safetensors")


@pytest.fixture
def start(digits, tiny_folder, tmp_path, request):
    """Starts a run; none outlives the test."""

    def run(folder: str, name: str, *, workers: int) -> Run:
        (tmp_path / folder).mkdir(exist_ok=True)
        started = Run(tiny_folder, digits, tmp_path / folder, name=name, workers=workers)
        request.addfinalizer(started.end)
        return started

    return run


@pytest.mark.slow
def test_a_run_killed_twice_ends_in_the_same_bits(start, tiny_folder):
    whole = start("never", "whole", workers=2)
    whole.finish()
    expected = whole.logged()
    assert list(whole.losses()) == list(range(STEPS))

    first = start("killed", "first", workers=2)
    first.kill(behind=FIRST_KILL)
    second = start("killed", "second", workers=2)
    second.kill(behind=SECOND_KILL)
    third = start("killed", "third", workers=0)
    third.finish()

    for run in (first, second, third):
        assert list(run.losses()) == list(range(min(run.losses()), max(run.losses()) + 1))
        for step, values in run.logged().items():
            # Lightning repeats the accuracy of a modality that has none in a step, if the process knows one.
            assert values.items() <= expected[step].items(), f"{run.log.stem}, step {step}"
    starts = [min(run.losses()) for run in (first, second, third)]
    assert starts[0] == 0
    assert 0 < starts[1] <= max(first.losses()) + 1 < EPOCH < starts[2] <= max(second.losses()) + 1 < STEPS
    assert max(third.losses()) == STEPS - 1

    weights, begun = third.weights(), load_file(tiny_folder / "model.safetensors")
    assert weights.keys() == whole.weights().keys()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, weights[name]), name
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in begun.items() if name in weights)
