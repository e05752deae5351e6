# SPDX-License-Identifier: Apache-2.0
"""What the datamodules share: shards in, batches out, in an order that a seed fixes and a run goes on in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import lightning as L
import numpy as np
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ixc_lightning.datamodules.batches import BatchDataset, Collator, ResumingLoader, StepSampler
from ixc_lightning.datamodules.budget import TokenBudget, check_budgets, open_budget
from ixc_lightning.datamodules.cache import FOLDER
from ixc_lightning.datamodules.filtering import filter_records
from ixc_lightning.datamodules.filters import Filter
from ixc_lightning.datamodules.lengths import FOLDER as LENGTHS
from ixc_lightning.datamodules.memory import prepare_worker
from ixc_lightning.datamodules.mixture import Source, as_list, as_parts, as_sources, check_window, source_ends
from ixc_lightning.datamodules.order import Order, SequentialOrder, TrainingOrder
from ixc_lightning.datamodules.pixels import to_floats
from ixc_lightning.datamodules.processing import ChatEncoder, text_of
from ixc_lightning.datamodules.quarantine import BadSample, Quarantine
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.resume import TrainingPosition
from ixc_lightning.datamodules.shards import Selection, ShardDataset
from ixc_lightning.datamodules.splits import open_splits
from ixc_lightning.types import Example, InputError

Records: TypeAlias = ShardDataset | Selection
BAD_SAMPLES = "bad_samples"


class ShardDataModule(L.LightningDataModule, ABC):
    """WebDataset shards in, collated batches out; text, images and videos may mix in one batch.

    The order of training follows from ``seed``, epoch and mixture alone; the ranks share each step of it out.
    The state of this datamodule is the number of samples that were trained on, so a run goes on exactly where
    it stopped, on any number of ranks and workers, as long as data, seed and ``unit`` are the same. A rank
    for which the last step of an epoch has nothing left gets a row that is marked as not real.

    Args:
        processor: hub id or folder of the model's processor. The command line takes it from the model's
            ``source``.
        train: shards to train on: a folder, a tar, a pattern such as ``data/shard-{000000..000009}.tar``, a
            list of them, or a list of ``Source`` (``shards`` and ``weight``). Each may lie at an address that
            ``fsspec`` knows, such as ``s3://bucket/train``. A folder that a converter wrote stands for those
            below it.
        val: shards to validate on.
        test: shards to test on.
        predict: shards to score.
        batch_size: records per rank and step.
        eval_batch_size: records per rank and step outside training; null takes the budget or the size of
            training.
        token_budget: in the place of ``batch_size``, the most tokens of a batch of one rank, which holds as
            many records as fit: of each pair the prompt, with its pictures, once and both responses; of
            instructions the padding too.
        eval_token_budget: the same outside training, in the place of ``eval_batch_size``.
        sharing: that of the reward model. With ``off``, or where the network cannot share, a pair counts as
            the two sequences that are read, and padding counts.
        lengths_folder: where the tokens of each record are kept once they are counted.
        num_workers: processes per rank that decode and encode; 0 does it in the training process.
        filters: rules that leave training records out.
        max_tokens: most tokens of a prompt and one response; a longer sample is an error, never cut.
        video_frames: frames taken from each video.
        response_suffix: text put after every response, such as a reward token.
        seed: fixes the order of training.
        shuffle_shards: shards of a source whose samples are mixed at a time; what is read lies in these.
        mix: what sources take turns with: ``samples``, or ``units`` that come from one source each.
        unit: samples of a unit; if null ``batch_size``, or as many of mean length as ``token_budget`` holds.
        group_by_length: units that are sorted by length together, so that a batch holds samples of like
            length and little padding; 0 leaves the order as it is.
        on_bad_sample: ``raise`` ends the run at a sample that cannot be used; ``quarantine`` leaves it out,
            lists it in ``bad_samples`` below the log folder, and counts it.
        max_bad_fraction: the run ends once more than this share of the samples was bad.
        cache_folder: where shards from an address are kept, for all processes of a machine.
        cache_gb: gigabytes that they may take; those unused for the longest go first.
        prefetch: batches that each worker looks ahead, to fetch their shards before they are needed.

    Attributes:
        dropped: number of training records that each filter left out, by the name of its class.
        domains: names of the domains of all splits, by id; known after ``setup``.
        order: the order of the training records; known after ``setup`` to fit.
    """

    kind: ClassVar[Kind]
    domains: list[str]

    def __init__(
        self,
        processor: str,
        *,
        train: str | list[str] | list[Source] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        token_budget: int | None = None,
        eval_token_budget: int | None = None,
        sharing: Literal["auto", "off"] = "auto",
        lengths_folder: str = LENGTHS,
        num_workers: int = 0,
        filters: list[Filter] | None = None,
        max_tokens: int | None = None,
        video_frames: int = 8,
        response_suffix: str = "",
        seed: int = 0,
        shuffle_shards: int = 32,
        mix: Literal["samples", "units"] = "samples",
        unit: int | None = None,
        group_by_length: int = 0,
        on_bad_sample: Literal["raise", "quarantine"] = "raise",
        max_bad_fraction: float = 0.01,
        cache_folder: str = FOLDER,
        cache_gb: float = 100.0,
        prefetch: int = 16,
    ) -> None:
        super().__init__()
        self.processor = processor
        self.sources = as_sources(train)
        self.shards = {"val": val, "test": test, "predict": predict}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        if eval_token_budget is None and eval_batch_size is None:
            eval_token_budget = token_budget
        check_budgets(token_budget, eval_token_budget, kind=self.kind, mix=mix)
        self.token_budget = token_budget
        self.eval_token_budget = eval_token_budget
        self.sharing = sharing
        self.lengths_folder = lengths_folder
        self.num_workers = num_workers
        self.filters = filters or []
        self.max_tokens = max_tokens
        self.video_frames = video_frames
        self.response_suffix = response_suffix
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self.mix = mix
        self.unit = unit or (None if token_budget else batch_size)
        self.group_by_length = group_by_length
        self.on_bad_sample = on_bad_sample
        self.max_bad_fraction = max_bad_fraction
        if prefetch < 0:
            raise InputError(f"data.prefetch is {prefetch}, but is a number of batches: 0 or more")
        self.cache_folder = cache_folder
        self.cache_gb = cache_gb
        self.prefetch = prefetch
        self.dropped: dict[str, int] = {}
        self._datasets: dict[str, Records] = {}
        self._budgets: dict[str, TokenBudget] = {}
        self._damage: list[BadSample] = []

    @abstractmethod
    def collator(self) -> Collator[Any]:
        """What turns records into this datamodule's batch."""

    def setup(self, stage: str) -> None:
        """Load the processor and open the shards of every split; to fit, filter the training ones.

        Every stage opens all splits, so that a domain has the same id in each. Where batches keep to a budget
        of tokens, the tokens of all records are counted, unless they were before.

        Raises:
            InputError: a path or an address that leads to no shard, filters that leave nothing, a cache that
                is too small, or a record that is longer than the budget.
        """
        if not self._datasets:
            self._open()
        evaluated = {"fit": "val", "validate": "val"}.get(stage, stage)
        if self.eval_token_budget is not None and evaluated in self._datasets:
            self._open_budget(evaluated, self.eval_token_budget)
        if stage == "fit":
            self._begin_fit()
            if self.shards["val"] is None and self.trainer is not None:
                # Lightning asks for a loader unless the limit is 0; an empty one would make it warn.
                self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> ResumingLoader:
        """Batches for training, from where training stands."""
        self.dataset("train")
        self.progress.leave_epoch(self.trainer, size=len(self.order))
        return self._loader("train", self.order)

    def val_dataloader(self) -> ResumingLoader:
        """Batches for validation, every record once, in the order of the shards."""
        return self._loader("val", SequentialOrder(len(self.dataset("val"))))

    def test_dataloader(self) -> ResumingLoader:
        """Batches for testing, every record once, in the order of the shards."""
        return self._loader("test", SequentialOrder(len(self.dataset("test"))))

    def predict_dataloader(self) -> ResumingLoader:
        """Batches for scoring, every record once, in the order of the shards."""
        return self._loader("predict", SequentialOrder(len(self.dataset("predict"))))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note how far the order has come, and what of it was bad; raises if that is too much."""
        if self.trainer is not None and self.trainer.training:
            self.progress.arrive(batch.position, self.trainer)
            self._count_bad([BadSample(*bad) for bad in batch.bad], batch.position, len(batch.keys))
        elif batch.bad:
            for bad in batch.bad:
                rank_zero_warn(f"a sample is left out of the evaluation: {BadSample(*bad).reason}")
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make floats of the pixels that came as bytes, on the device."""
        scales = self._encoder_in_bytes.scales
        if not scales:
            return batch
        media = to_floats(batch.prompts.media, scales)
        return batch._replace(prompts=batch.prompts._replace(media=media))

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the order of the samples, and in which order; nothing before it begins."""
        if "progress" not in self.__dict__:
            return {}  # a checkpoint that a callback writes on an error of the start must not hide it
        assert self.trainer is not None
        position = self.progress.trained(self.trainer)
        return {
            "position": position,
            "step": self._step,
            "order": self._fingerprint,
            "quarantine": self.quarantine.state_dict() | {"position": position},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the run that wrote ``state`` stood.

        Raises:
            InputError: its order was another one, because data, seed, mixture or units were.
        """
        if "order" not in self.__dict__:
            return  # a checkpoint is loaded to evaluate
        if state["order"] != self._fingerprint:
            raise InputError(
                "the checkpoint comes from a run with other training data, or another seed, mixture, filter "
                "or unit, so its place in them means nothing here: give the same data settings, or start a "
                "new run from an exported model"
            )
        self.progress.restart(state["position"])
        self.quarantine.load_state_dict(state["quarantine"])
        if self.trainer is not None and state["step"] != self._step:
            # Lightning counts the steps of an epoch once; with other steps, epochs differ in their number.
            self.trainer.reload_dataloaders_every_n_epochs = 1

    def teardown(self, stage: str) -> None:
        """Say how many bad samples there were."""
        if stage == "fit" and self.on_bad_sample == "quarantine":
            rank_zero_info(self.quarantine.summary())

    @property
    def position(self) -> int:
        """Samples of the order, over all ranks and epochs, that have arrived for training."""
        return self.progress.arrived

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

    def example(self, split: str, key: str) -> Example:
        """The pair that a batch's ``keys`` name so, with its pictures decoded, for people to look at."""
        record = self.dataset(split).named(key)
        return Example(
            prompt=text_of(record.messages),
            chosen=text_of(record.chosen or ()),
            rejected=text_of(record.rejected or ()),
            pictures=self.encoder.pictures(record),
        )

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _step(self) -> int:
        """Samples of a training step, over all ranks; 0 where their tokens are counted."""
        return 0 if self.token_budget else self.batch_size * self._ranks[1]

    @property
    def _fingerprint(self) -> str:
        """What tells the order of training from another one, down to the lengths that it groups by."""
        grouped_by = (
            [self._budgets["train"].fingerprint] if self.token_budget and self.group_by_length else []
        )
        return "/".join([self.order.fingerprint, *grouped_by])

    @cached_property
    def _encoder_in_bytes(self) -> ChatEncoder:
        return self.encoder.in_bytes()

    def _open(self) -> None:
        self.encoder = ChatEncoder(
            self.processor,
            max_tokens=self.max_tokens,
            video_frames=self.video_frames,
            response_suffix=self.response_suffix,
        )
        named = {"train": [one for source in self.sources for one in source.names]}
        named |= {split: as_list(shards) for split, shards in self.shards.items()}
        opened = open_splits(
            named,
            kind=self.kind,
            on_damage=self._damage.append if self.on_bad_sample == "quarantine" else None,
            cache_folder=self.cache_folder,
            cache_bytes=round(self.cache_gb * 1e9),
        )
        self.domains = sorted({domain for dataset in opened.values() for domain in dataset.domains})
        self._datasets = dict(opened)

    def _begin_fit(self) -> None:
        """Filter the training records, fix their order, and stand at its beginning."""
        train = self.dataset("train")
        whole = train.records if isinstance(train, Selection) else train
        ends = source_ends(self.sources, whole.groups)
        check_window(
            np.split(whole.remote_bytes, ends[:-1]),
            window=self.shuffle_shards,
            cache_bytes=self.cache_gb * 1e9,
            advice="raise data.cache_gb, or lower data.shuffle_shards",
        )
        if self.filters and train is whole:
            train, self.dropped = filter_records(
                whole, self.filters, self.encoder, keeps_bad=self.on_bad_sample == "quarantine"
            )
            self._datasets["train"] = train
        counts = np.split(train.counts, ends[:-1])
        costs, unit = train.costs, self.unit
        if self.token_budget is not None:
            budget = self._open_budget("train", self.token_budget)
            costs, unit = budget.sizes, unit or max(1, round(self.token_budget / budget.mean))
            if self.trainer is not None:
                # Lightning counts the steps of an epoch once, and by lengths they differ from epoch to epoch.
                self.trainer.reload_dataloaders_every_n_epochs = 1
        self.order = TrainingOrder(
            as_parts(self.sources, counts),
            seed=self.seed,
            window=self.shuffle_shards,
            mix=self.mix,
            unit=unit or self.batch_size,
            pool=self.group_by_length,
            costs=costs,
            cut="samples" if self.token_budget is None else "costs",
        )
        self.progress = TrainingPosition()
        rank, world_size = self._ranks
        self.quarantine = Quarantine(
            self.on_bad_sample,
            Path((self.trainer and self.trainer.log_dir) or ".") / BAD_SAMPLES,
            max_fraction=self.max_bad_fraction,
            rank=rank,
            world_size=world_size,
        )

    def _open_budget(self, split: str, tokens: int) -> TokenBudget:
        """The budget of the batches of a split."""
        if split not in self._budgets:
            self._budgets[split] = open_budget(
                tokens,
                self.dataset(split),
                self.collator(),
                layout="trees" if self.sharing == "auto" and self.kind is Kind.PREFERENCE else "padded",
                folder=self.lengths_folder,
                num_workers=self.num_workers,
                keeps_bad=self.on_bad_sample == "quarantine",
            )
        return self._budgets[split]

    def _loader(self, split: str, order: Order) -> ResumingLoader:
        rank, world_size = self._ranks
        tokens = self.token_budget if split == "train" else self.eval_token_budget
        number = self.batch_size if split == "train" else self.eval_batch_size
        collator = self.collator()
        if self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING:
            # It calls ``on_after_batch_transfer``; who iterates a loader by hand would not.
            collator.encoder = self._encoder_in_bytes
        batches = BatchDataset(
            self.dataset(split),
            order,
            collator,
            batch_size=number if tokens is None else self._open_budget(split, tokens),
            rank=rank,
            world_size=world_size,
            keeps_going=self.on_bad_sample == "quarantine",
            prefetch=self.prefetch,
        )

        def begin() -> tuple[int, int]:
            if split != "train":
                return 0, 0
            return self.progress.begin(self.trainer, size=len(order), steps=batches.steps.count)

        return ResumingLoader(
            batches,
            batch_size=None,
            sampler=StepSampler(batches, begin),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=prepare_worker,
            # Else every new iterator draws from the global generator, and a resumed run from another place.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
        )

    def _count_bad(self, bad: list[BadSample], position: int, rows: int) -> None:
        assert self.trainer is not None
        if self.trainer.is_global_zero:
            bad, self._damage = self._damage + bad, []
        for sample in bad:
            self.quarantine.add(sample, position - 1)
        self.quarantine.seen(rows, position=position)
        if bad and self.trainer.logger is not None:
            self.trainer.logger.log_metrics(
                {"data/bad_samples": self.quarantine.num_bad}, self.trainer.global_step
            )
