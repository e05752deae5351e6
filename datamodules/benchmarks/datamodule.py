# SPDX-License-Identifier: Apache-2.0
"""A benchmark's items as batches to be scored."""

from __future__ import annotations

from typing import Literal

import lightning as L
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ixc_lightning.datamodules.benchmarks.items import BenchmarkItems
from ixc_lightning.datamodules.benchmarks.reader import BenchmarkItem, BenchmarkReader
from ixc_lightning.datamodules.candidates import EncodedCandidates, candidate_batch, encode_candidates
from ixc_lightning.datamodules.memory import prepare_worker
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import CandidateBatch, InputError

OnBadItem = Literal["raise", "leave_out"]


class BenchmarkDataModule(L.LightningDataModule):
    """The items of a reward benchmark, from its files as released, each once and shared out over the ranks.

    Every item's prompt, with its pictures, comes once, and all responses after it, the better ones first.

    Args:
        processor: hub id or folder of the model's processor. The command line takes it from the model's
            ``source``.
        reader: reads the benchmark.
        path: its file, its folder, a glob pattern, or its id on the hub.
        media: folders or zips below which pictures and clips lie; null is the folder of each file.
        batch_size: items per rank and step.
        num_workers: processes per rank that decode and encode; 0 does it in the main process.
        max_tokens: most tokens of a prompt and one response; a longer item is bad, never cut.
        video_frames: frames taken from each clip.
        frames_per_second: of clips that are folders of JPEG frames, which do not tell it.
        response_suffix: text put after every response, such as a reward token.
        on_bad_item: ``raise`` ends the run at an item that cannot be used; ``leave_out`` scores the others
            and counts it.

    Attributes:
        items: all items, in the order of the files; known after ``setup``.
        encoder: known after ``setup``.
    """

    items: list[BenchmarkItem]
    encoder: ChatEncoder

    def __init__(
        self,
        processor: str,
        *,
        reader: BenchmarkReader,
        path: str | None = None,
        media: str | list[str] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        max_tokens: int | None = None,
        video_frames: int = 8,
        frames_per_second: int = 1,
        response_suffix: str = "",
        on_bad_item: OnBadItem = "raise",
    ) -> None:
        super().__init__()
        self.processor = processor
        self.reader = reader
        self.path = path
        self.media = media
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_tokens = max_tokens
        self.video_frames = video_frames
        self.frames_per_second = frames_per_second
        self.response_suffix = response_suffix
        self.on_bad_item = on_bad_item

    def setup(self, stage: str) -> None:
        """Load the processor, and read all texts of the benchmark.

        Raises:
            InputError: no path is given, or there is no such benchmark.
        """
        if self.path is None:
            raise InputError(
                "data.path is not given: name the folder, the file or the hub id of the benchmark"
            )
        if self.batch_size < 1:
            raise InputError(f"data.batch_size is {self.batch_size}, but must be at least 1")
        self.source = BenchmarkItems(
            self.reader, self.path, media=self.media, frames_per_second=self.frames_per_second
        )
        self.items = self.source.items
        self.encoder = ChatEncoder(
            self.processor,
            max_tokens=self.max_tokens,
            video_frames=self.video_frames,
            response_suffix=self.response_suffix,
        )

    def test_dataloader(self) -> DataLoader[CandidateBatch]:
        """Batches of this rank's items."""
        batches = ItemBatches(
            self.source,
            self.encoder,
            batch_size=self.batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            keeps_going=self.on_bad_item == "leave_out",
        )
        return DataLoader(
            batches,
            batch_size=None,
            # The ranks' shares are made above; the type alone keeps Lightning from sharing out once more.
            sampler=DistributedSampler(batches, num_replicas=1, rank=0, shuffle=False),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=prepare_worker,
        )


class ItemBatches(Dataset[CandidateBatch]):
    """The batches of one rank: of all batches in the order of the items, every ``world_size``-th.

    A rank for which there is none gets a copy of the first usable item, marked as not real. A batch whose
    items are all bad has one too.

    Args:
        source: the items.
        encoder: encodes prompts and responses.
        batch_size: items of a batch.
        rank: this process.
        world_size: number of processes.
        keeps_going: whether a bad item is left out and named in its batch; else it raises.
    """

    def __init__(
        self,
        source: BenchmarkItems,
        encoder: ChatEncoder,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        keeps_going: bool,
    ) -> None:
        starts = range(rank * batch_size, len(source), world_size * batch_size)
        self.shares = [range(start, min(start + batch_size, len(source))) for start in starts] or [range(0)]
        self.source = source
        self.encoder = encoder
        self.keeps_going = keeps_going

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self.shares)

    def __getitem__(self, index: int) -> CandidateBatch:
        """Return a batch.

        Raises:
            InputError: naming the item, if one is bad and ``keeps_going`` is off, or all are.
        """
        bad: list[tuple[int, str, str, str]] = []
        samples = [sample for number in self.shares[index] if (sample := self._sample(number, bad))]
        return candidate_batch(samples or [self._any_sample()], is_real=bool(samples), bad=bad)

    def _sample(self, number: int, bad: list[tuple[int, str, str, str]]) -> EncodedCandidates | None:
        try:
            return encode_candidates(self.encoder, self.source.candidates(number), row=number)
        except InputError as error:
            if not self.keeps_going:
                raise
            file, key = self.source.place(number)
            bad.append((number, key, file, str(error)))
            return None

    def _any_sample(self) -> EncodedCandidates:
        for number in range(len(self.source)):
            if sample := self._sample(number, []):
                return sample
        raise InputError(f"{self.source.files[0]}: none of the {len(self.source):,} items can be used")
