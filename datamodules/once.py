# SPDX-License-Identifier: Apache-2.0
"""Records that are gone through once, over several runs if need be."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from ixc_lightning.datamodules.memory import prepare_worker
from ixc_lightning.types import InputError


class OnceDataModule(L.LightningDataModule, ABC):
    """Batches for the ``predict`` command of what no earlier run has done, in the order of the data.

    The ranks share each step out. ``leave_out`` skips what an earlier run has done.

    Attributes:
        todo: numbers of the records that are left, ascending; known after ``setup``.

    Raises:
        InputError: ``batch_size`` is not positive.
    """

    todo: np.ndarray

    def __init__(self, *, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # all may be done already
        if batch_size < 1:
            raise InputError(f"data.batch_size is {batch_size}, but must be at least 1")
        self.batch_size = batch_size
        self.num_workers = num_workers

    @abstractmethod
    def __len__(self) -> int:
        """Number of records, done before or not."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What differs when other data are gone through, or are read in another way."""

    @abstractmethod
    def batches(self) -> tuple[Dataset[Any], Sampler[Any]]:
        """This rank's batches of what is left, and where its steps begin.

        The sampler is a ``DistributedSampler`` by type alone, so that Lightning leaves it in place: the
        ranks' shares are the batches' business.
        """

    def leave_out(self, rows: np.ndarray) -> None:
        """Skip the records of these numbers."""
        self.todo = np.setdiff1d(np.arange(len(self)), rows)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of what is not left out, in the order of the data."""
        if not len(self.todo):  # as Lightning suspects that nobody meant it
            warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")
            return DataLoader([], batch_size=None)  # type: ignore[arg-type]
        batches, sampler = self.batches()
        return DataLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=prepare_worker,
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
        )

    @property
    def ranks(self) -> tuple[int, int]:
        """This process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
