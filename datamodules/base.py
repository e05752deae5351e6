# SPDX-License-Identifier: Apache-2.0
"""What the datamodules share: shards in, collated batches out, in an order that a seed fixes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import lightning as L
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler

from ixc_lightning.datamodules.filters import Filter
from ixc_lightning.datamodules.processing import ChatEncoder, text_of
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import Example, InputError, Record

Records: TypeAlias = ShardDataset | Subset[Record]


class ShardDataModule(L.LightningDataModule, ABC):
    """WebDataset shards in, collated batches out; text, images and videos may mix in one batch.

    The order of training is a function of ``seed`` and the epoch alone; ranks take turns in it.

    Args:
        processor: hub id or folder of the model's processor. The command line takes it from the model's
            ``source``.
        train: shards to train on: a folder, a tar, a pattern such as ``data/shard-{000000..000009}.tar``, or
            a list of them.
        val: shards to validate on.
        test: shards to test on.
        predict: shards to score.
        batch_size: records per rank and step.
        eval_batch_size: records per rank and step outside training; ``batch_size`` if null.
        num_workers: processes per rank that decode and encode; 0 does it in the training process.
        filters: rules that leave training records out.
        max_tokens: most tokens of a prompt and one response; a longer sample is an error, never cut.
        video_frames: frames taken from each video.
        response_suffix: text put after every response, such as a reward token.
        seed: fixes the order of training.

    Attributes:
        dropped: number of training records that each filter left out, by the name of its class.
        domains: names of the domains of all splits, by id; known after ``setup``.
    """

    kind: ClassVar[Kind]
    domains: list[str]

    def __init__(
        self,
        processor: str,
        *,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        filters: list[Filter] | None = None,
        max_tokens: int | None = None,
        video_frames: int = 8,
        response_suffix: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.processor = processor
        self.shards = {"train": train, "val": val, "test": test, "predict": predict}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.filters = filters or []
        self.max_tokens = max_tokens
        self.video_frames = video_frames
        self.response_suffix = response_suffix
        self.seed = seed
        self.dropped: dict[str, int] = {}
        self._datasets: dict[str, Records] = {}

    @abstractmethod
    def collator(self) -> Callable[[Sequence[Record]], Any]:
        """What turns records into this datamodule's batch."""

    def setup(self, stage: str) -> None:
        """Load the processor and open the shards of every split; to fit, filter the training ones.

        Every stage opens all splits, so that a domain has the same id in each.

        Raises:
            InputError: a path that leads to no shard, or filters that leave nothing.
        """
        if not self._datasets:
            self._open()
        if stage == "fit":
            train = self.dataset("train")
            if self.filters and isinstance(train, ShardDataset):
                self._datasets["train"] = self._filtered(train)
            if self.shards["val"] is None and self.trainer is not None:
                # Lightning asks for a loader unless the limit is 0; an empty one would make it warn.
                self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches for training; a last batch that is not full is left to the next epoch's shuffle."""
        return self._loader("train", shuffle=True, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches for validation, in the order of the shards.

        Ranks need equally many batches, so where the records do not divide among them the first ones come
        twice.
        """
        return self._loader("val", shuffle=False, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches for testing, in the order of the shards."""
        return self._loader("test", shuffle=False, batch_size=self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches for scoring, in the order of the shards."""
        return self._loader("predict", shuffle=False, batch_size=self.eval_batch_size)

    def dataset(self, split: str) -> Records:
        """The records of a split; to fit, the training ones that the filters kept.

        Raises:
            InputError: no shards are named for the split.
        """
        if split not in self._datasets:
            raise InputError(
                f"data.{split} names no shards: give a folder or tars, for example data/{split}-000000.tar"
            )
        return self._datasets[split]

    def example(self, split: str, index: int) -> Example:
        """The pair at a place of a split with its pictures decoded, for tables that people look at."""
        record = self.dataset(split)[index]
        return Example(
            prompt=text_of(record.messages),
            chosen=text_of(record.chosen or ()),
            rejected=text_of(record.rejected or ()),
            pictures=self.encoder.pictures(record),
        )

    def _open(self) -> None:
        self.encoder = ChatEncoder(
            self.processor,
            max_tokens=self.max_tokens,
            video_frames=self.video_frames,
            response_suffix=self.response_suffix,
        )
        opened = {
            split: ShardDataset(shards, kind=self.kind)
            for split, shards in self.shards.items()
            if shards is not None
        }
        self.domains = sorted({domain for dataset in opened.values() for domain in dataset.domains})
        self._datasets = dict(opened)

    def _loader(self, split: str, *, shuffle: bool, batch_size: int) -> DataLoader[Any]:
        dataset = self.dataset(split)
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if shuffle and len(dataset) < batch_size * world:
            raise InputError(
                f"data.train holds {len(dataset)} records, fewer than one batch of {batch_size} on each of "
                f"{world} ranks: lower data.batch_size or name more shards"
            )
        return DataLoader(
            dataset,
            batch_size=batch_size,
            # A distributed sampler also on one rank: Lightning leaves it alone and tells it the epoch.
            sampler=DistributedSampler(
                dataset, world, rank, shuffle=shuffle, seed=self.seed, drop_last=shuffle
            ),
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self.collator(),
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
        )

    def _filtered(self, dataset: ShardDataset) -> Subset[Record]:
        kept: Sequence[int] = range(len(dataset))
        dropped: dict[str, int] = {}
        for rule in self.filters:
            before = len(kept)
            kept = [index for index in kept if rule.keep(dataset.record(index, media=False), self.encoder)]
            name = type(rule).__name__
            dropped[name] = dropped.get(name, 0) + before - len(kept)
            rank_zero_info(f"{name} dropped {before - len(kept):,} of {before:,} training records")
        if not kept:
            raise InputError(f"{', '.join(dropped)} dropped every training record: loosen data.filters")
        self.dropped = dropped
        return Subset(dataset, kept)
