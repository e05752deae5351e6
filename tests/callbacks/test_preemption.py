# SPDX-License-Identifier: Apache-2.0
"""A run that a signal stops saves behind its step, asks to be queued again, and goes on as if nothing was."""

import os
import signal
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim import AdamW

from ixc_lightning.callbacks import Preemption
from ixc_lightning.callbacks.preemption import STATUS, UNFINISHED
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import RewardModule, RLOOModule
from ixc_lightning.types import InputError
from tests.digits import preference_data, trainer
from tests.modules.policies import on_policy, prompt_data

STEPS = 3

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


def reward(tiny):
    torch.manual_seed(0)
    return RewardModule(partial(RewardModel, str(tiny)), optimizer=partial(AdamW, lr=1e-3))


def told(module, *, call, by=signal.SIGUSR1):
    """The module, whose process gets a signal in the midst of the ``call``-th training step."""
    calls, own = [], module.training_step

    def training_step(batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == call:
            os.kill(os.getpid(), by)
        return own(batch, batch_idx)

    module.training_step = training_step
    return module


class Notes(Callback):
    """What a logger gets, by the steps that it is told."""

    def __init__(self):
        self.validated = []

    def on_validation_end(self, trainer, module):
        self.validated.append(trainer.global_step)


def fit(module, data, folder, *, checkpoint=None, keeps=True, notes=None, **options):
    keeper = ModelCheckpoint(dirpath=folder / "kept", save_last=True, every_n_train_steps=100)
    callbacks = [Preemption(), notes or Notes(), *([keeper] if keeps else [])]
    settings = {"max_steps": STEPS, "max_epochs": 4, "limit_val_batches": 0, "callbacks": callbacks}
    run = trainer(folder, enable_checkpointing=True, **{**settings, **options})
    run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return run


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A SLURM job whose ``scontrol`` writes down what it was asked; gives the file."""
    asked = tmp_path / "asked"
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    return asked


@pytest.mark.parametrize("kind", ["reward", "rloo"])
def test_a_run_that_a_signal_stopped_goes_on_as_one_that_it_did_not(kind, digits, tiny_folder, tmp_path):
    def made():
        if kind == "reward":
            return reward(tiny_folder), preference_data(digits, tiny_folder, val=None, batch_size=4)
        return on_policy(RLOOModule, tiny_folder), prompt_data(digits, tiny_folder, batch_size=2)

    whole, data = made()
    fit(whole, data, tmp_path / "whole")
    first, data = made()
    with pytest.raises(SystemExit) as stopped:
        fit(told(first, call=1, by=signal.SIGTERM), data, tmp_path / "first")
    assert stopped.value.code == STATUS
    file = tmp_path / "first/kept/last.ckpt"
    assert torch.load(file, weights_only=True)["global_step"] == 1
    assert not (file.parent / UNFINISHED).exists()
    again, data = made()
    run = fit(again, data, tmp_path / "first", checkpoint=file)
    assert run.global_step == run.fit_loop.epoch_loop._batches_that_stepped == STEPS
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_validation_that_is_due_comes_before_the_run_stops_and_is_not_repeated(
    digits, tiny_folder, tmp_path
):
    data, notes = preference_data(digits, tiny_folder, batch_size=4, eval_batch_size=16), Notes()
    options = {"limit_val_batches": 1, "val_check_interval": 2, "max_steps": 4, "notes": notes}
    with pytest.raises(SystemExit):
        fit(told(reward(tiny_folder), call=2), data, tmp_path, **options)
    assert notes.validated == [2]
    saved = torch.load(tmp_path / "kept/last.ckpt", weights_only=True)["state_dict"]
    assert saved["model.score_std"] != 1  # that of the validation
    data = preference_data(digits, tiny_folder, batch_size=4, eval_batch_size=16)
    run = fit(reward(tiny_folder), data, tmp_path, checkpoint=tmp_path / "kept/last.ckpt", **options)
    assert notes.validated == [2, 4]
    assert run.fit_loop.epoch_loop._batches_that_stepped == 4  # what loggers count


def test_a_run_that_is_told_in_its_last_step_ends_well(digits, tiny_folder, tmp_path):
    data = preference_data(digits, tiny_folder, val=None, batch_size=4)
    assert fit(told(reward(tiny_folder), call=STEPS), data, tmp_path).global_step == STEPS


def test_no_run_stops_between_two_batches_of_one_step(digits, tiny_folder, tmp_path):
    data = preference_data(digits, tiny_folder, val=None, batch_size=4)
    with pytest.raises(SystemExit):
        fit(told(reward(tiny_folder), call=3), data, tmp_path, accumulate_grad_batches=2)
    saved = torch.load(tmp_path / "kept/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == 4


@pytest.mark.parametrize(
    ("variables", "job"), [({}, "42"), ({"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "3"}, "7_3")]
)
def test_the_signal_of_a_time_limit_puts_the_job_back_into_the_queue(
    variables, job, queue, digits, tiny_folder, tmp_path, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit):
        fit(told(reward(tiny_folder), call=1), preference_data(digits, tiny_folder, val=None), tmp_path)
    assert queue.read_text() == f"requeue {job}\n"
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_job_that_is_cancelled_does_not_come_back(queue, digits, tiny_folder, tmp_path):
    data = preference_data(digits, tiny_folder, val=None)
    with pytest.raises(SystemExit):
        fit(told(reward(tiny_folder), call=1, by=signal.SIGTERM), data, tmp_path)
    assert (tmp_path / "kept/last.ckpt").exists()
    assert not queue.exists()


def test_a_run_with_no_place_to_save_to_is_refused_before_it_starts(digits, tiny_folder, tmp_path):
    with pytest.raises(InputError, match=r"none has save_last and dirpath: add .*ModelCheckpoint"):
        fit(reward(tiny_folder), preference_data(digits, tiny_folder, val=None), tmp_path, keeps=False)


def test_an_unknown_signal_is_refused():
    with pytest.raises(InputError, match="there is no signal 'SIGSLURM'"):
        Preemption(stop_on=["SIGSLURM"])
