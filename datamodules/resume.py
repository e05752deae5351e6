# SPDX-License-Identifier: Apache-2.0
"""How far training has come in the order of the samples, by what Lightning's loops know of the batches."""

from __future__ import annotations

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

    def begin(self, trainer: L.Trainer | None, *, size: int, step: int) -> tuple[int, int]:
        """Where the epoch begins that Lightning is about to go through, and how many steps of it are done.

        Args:
            trainer: the trainer, or None outside one.
            size: samples of an epoch.
            step: samples of a step over all ranks.
        """
        if trainer is None:
            return self.arrived, 0
        loop = trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.processed if loop.restarting else 0
        epoch = max(trainer.current_epoch, self.arrived // size)
        limit = trainer.limit_train_batches
        allowed = limit if isinstance(limit, int) else int(limit * -(-size // step))
        if done >= allowed and self.arrived // size == epoch and self.arrived % size:
            epoch += 1  # a limited epoch has ended, and Lightning is about to begin the next one
        return (self.arrived if self.arrived // size == epoch else epoch * size), done
