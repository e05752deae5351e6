# SPDX-License-Identifier: Apache-2.0
"""A run that the scheduler takes its machines from: it saves where it stands, and asks to be queued again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ixc_lightning.types import InputError

STATUS = os.EX_TEMPFAIL
"""Exit status of a run that saved and stopped: 75, "try again" in sysexits.h."""
UNFINISHED = ".unfinished.ckpt"


class Preemption(Callback):
    """Saves ``last.ckpt`` and ends the run with status 75 when a signal asks for it.

    The step that is under way, and a validation behind it, are finished first, so that a run with
    ``--ckpt_path last`` goes on as if there had been no signal; all ranks stop at the same step, even if one
    alone was told. Let the scheduler wait as long as a step, a validation and a checkpoint take.

    Lightning has a handler for SLURM's signal as well, which this one replaces: it saves wherever the signal
    finds the process. In the middle of a step that is no state to go on from, and on several ranks, each in
    another place, the collectives of a sharded checkpoint do not meet.

    Needs a ``ModelCheckpoint`` with ``save_last`` and a ``dirpath`` that later runs have too.

    Args:
        stop_on: names of signals that stop the run.
        requeue_on: those of them behind which a SLURM job is put back into the queue with ``scontrol
            requeue``. Where SLURM pre-empts a job it does that by itself, and a job that a person cancels
            gets SIGTERM too, and is not to come back.

    Raises:
        InputError: a signal is unknown.
    """

    def __init__(
        self,
        stop_on: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        requeue_on: Sequence[str] = ("SIGUSR1",),
    ) -> None:
        for name in (*stop_on, *requeue_on):
            if name not in signal.Signals.__members__:
                raise InputError(f"there is no signal {name!r}: give names such as SIGTERM and SIGUSR1")
        self.stop_on = [signal.Signals[name] for name in stop_on]
        self.requeue_on = [signal.Signals[name] for name in requeue_on]
        self.received: signal.Signals | None = None
        self.has_saved = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out before training that there is no place to save to.

        Raises:
            InputError: no ``ModelCheckpoint`` keeps a last checkpoint in a folder of a given name.
        """
        if self._keeper(trainer) is None:
            raise InputError(
                "Preemption saves last.ckpt where ModelCheckpoint does, but none has save_last and dirpath: "
                "add lightning.pytorch.callbacks.ModelCheckpoint to trainer.callbacks, with both"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen from here on; Lightning, whose handlers stand by now, restores those of before it."""
        self.received, self.has_saved = None, False
        if threading.current_thread() is threading.main_thread():
            for one in self.stop_on:
                signal.signal(one, self._receive)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if any rank was told to stop and a step is over; where a validation follows, behind that."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the gradients of half a step are in no checkpoint
        loop = trainer.fit_loop
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._save_if_told(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if any rank was told to stop."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_if_told(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave, if there is a checkpoint to go on from; by now the logger has the step that came before it.

        Raises:
            SystemExit: with status 75.
        """
        if self.has_saved:
            raise SystemExit(STATUS)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def _keeper(self, trainer: L.Trainer) -> ModelCheckpoint | None:
        keepers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        return next((one for one in keepers if one.save_last and one.dirpath), None)

    def _save_if_told(self, trainer: L.Trainer) -> None:
        """Agree with the other ranks, and save, unless an epoch or the run is over with this step."""
        is_over = trainer.global_step == trainer.max_steps
        if self.has_saved or is_over or (trainer.is_last_batch and trainer.num_training_batches > 1):
            return
        number = 0 if self.received is None else int(self.received)
        own = torch.tensor(number, device=trainer.strategy.root_device)
        told = int(trainer.strategy.reduce(own, reduce_op="max"))
        if not told:
            return
        path = self._save(trainer)
        self.has_saved = True
        name = signal.Signals(told).name
        rank_zero_info(f"{name}: saved {path} behind step {trainer.global_step}; go on with --ckpt_path last")
        if signal.Signals(told) in self.requeue_on and trainer.is_global_zero:
            _requeue()

    def _save(self, trainer: L.Trainer) -> Path:
        """Write the checkpoint under another name first: a kill while it is written leaves the one before."""
        keeper = self._keeper(trainer)
        assert keeper is not None
        assert keeper.dirpath is not None
        folder = Path(keeper.dirpath)
        path = folder / f"{keeper.CHECKPOINT_NAME_LAST}{keeper.FILE_EXTENSION}"
        keeper.last_model_path = str(path)  # in the checkpoint too: it is overwritten, not put beside, later
        trainer.save_checkpoint(folder / UNFINISHED)
        if trainer.is_global_zero:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            os.replace(folder / UNFINISHED, path)
        trainer.strategy.barrier("preemption")
        return path


def _requeue() -> None:
    """Put this SLURM job, or this task of an array of jobs, back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(
            f"job {job} is not in the queue again: {error}; put it there with scontrol requeue {job}"
        )
