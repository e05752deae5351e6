# SPDX-License-Identifier: Apache-2.0
"""How far training has come in the order of the samples, by what Lightning's loops know of the batches."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L


class TrainingPosition:
    """A place in the order: behind the last batch that arrived, and behind the last one trained on.

    The two differ while a batch is being trained on. A checkpoint that is written then, because something
    went wrong, must not count that batch, so the loop's own progress decides.

    Attributes:
        arrived: samples of the order, over all ranks and epochs, up to the end of the batch that came last.
    """

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, position: int) -> None:
        """Begin at ``position``, with nothing arrived behind it."""
        self.arrived = self._before = position
        self._batches = 0

    def arrive(self, position: int, trainer: L.Trainer) -> None:
        """Note that a batch has come whose end is ``position``; the one before it is done with by now."""
        self._before, self.arrived = self.arrived, position
        self._batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready + 1

    def trained(self, trainer: L.Trainer) -> int:
        """Samples up to the end of the last batch that was trained on."""
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed >= self._batches
        return self.arrived if done else self._before

    def leave_epoch(self, trainer: L.Trainer | None, *, size: int) -> None:
        """Have Lightning begin an epoch whose loader it is asking for, if it goes on behind the one before.

        From a checkpoint that was written at the last batch of an epoch, it compares the batches done of that
        epoch with the number of the new one's, which may be larger: by lengths, or on other ranks.

        Args:
            trainer: the trainer, or None outside one.
            size: samples of an epoch.
        """
        if trainer is None or self.arrived != trainer.current_epoch * size:
            return
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting and loop.restarted_on_train_batch_end:
            loop.batch_progress.increment_completed()
            loop.reset_restart_stage()
            loop.restarting = False

    def begin(self, trainer: L.Trainer | None, *, size: int, steps: Callable[[int], int]) -> tuple[int, int]:
        """Where the epoch begins that Lightning is about to go through, and how many steps of it are done.

        Args:
            trainer: the trainer, or None outside one.
            size: samples of an epoch.
            steps: number of steps from a place to the end of its epoch.
        """
        if trainer is None:
            return self.arrived, 0
        loop = trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.processed if loop.restarting else 0
        epoch = max(trainer.current_epoch, self.arrived // size)
        start = self.arrived if self.arrived // size == epoch else epoch * size
        if done and start % size and done >= _allowed(trainer, epoch * size, steps):
            start = (epoch + 1) * size  # a limited epoch has ended, and the next one is about to begin
        # Lightning may say for a while yet what was done of the epoch before.
        return start, 0 if start == trainer.current_epoch * size else done


def _allowed(trainer: L.Trainer, epoch: int, steps: Callable[[int], int]) -> float:
    """Steps after which Lightning ends the epoch that begins at a place, though samples are left."""
    limit = trainer.limit_train_batches
    if isinstance(limit, int):
        return limit
    # Without a limit the samples decide: on more ranks, an epoch has fewer steps than are done of it already.
    return float("inf") if limit == 1.0 else int(limit * steps(epoch))
