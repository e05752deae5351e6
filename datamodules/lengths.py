# SPDX-License-Identifier: Apache-2.0
"""How many tokens every record has, by the model's own processor: measured once, then kept in files.

    FOLDER/<hash of the processor>/shard-000000-<hash of the shard>.npy

A file holds the lengths of one shard, as int32: a row for each record, the prompt with its pictures and clips
in the first column and each response in one of its own; a row of ``UNUSABLE`` where a record cannot be read
or encoded. Measuring decodes every picture, as a pass of training would; all processes that need the lengths
share it out by shards, under locks of files, so that none waits for a collective. What is kept holds for any
number of ranks, budget and filters.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from copy import copy
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int32
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from ixc_lightning.datamodules.collate import Collator
from ixc_lightning.datamodules.memory import prepare_worker
from ixc_lightning.datamodules.order import Places
from ixc_lightning.datamodules.processing import ChatEncoder, Encoded
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import StoreInputError, shown
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError

FOLDER = "~/.cache/ixc_lightning/lengths"
UNUSABLE = -1
COLUMNS = {Kind.PREFERENCE: 3, Kind.INSTRUCTION: 2}
"""The prompt, and the responses of a record of each kind."""
CHUNK = 16
"""Records that a worker measures at a time."""
KEPT_SHARDS = 256
"""Shards whose lengths a process keeps in memory."""
POLL_S = 0.2
TELL_S = 1.0

Rows: TypeAlias = Int32[np.ndarray, "N K"]
Chunk: TypeAlias = tuple[int, int, int]
"""A shard, and the numbers of its first record and behind its last one, among those of all shards."""


class Lengths:
    """The lengths of the records of a data set, from their files.

    Args:
        records: the data set.
        files: of the lengths of each of its shards.
    """

    def __init__(self, records: ShardDataset, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.counts = np.asarray(records.counts)
        self.ends = np.cumsum(self.counts)
        self.columns = COLUMNS[records.kind]
        self._rows = lru_cache(KEPT_SHARDS)(self._load)

    def of(self, indices: Places) -> Rows:
        """Lengths of the prompt and of each response, a row for each record.

        Raises:
            InputError: naming the file, if one cannot be read or is of other data.
        """
        shards = np.searchsorted(self.ends, indices, side="right")
        rows = np.empty((len(indices), self.columns), dtype=np.int32)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            rows[chosen] = self._rows(shard)[indices[chosen] - (self.ends[shard] - self.counts[shard])]
        return rows

    @property
    def fingerprint(self) -> str:
        """That of the processor."""
        return self.files[0].parent.name

    def file(self, index: int) -> Path:
        """Where the lengths of a record are kept."""
        return self.files[int(np.searchsorted(self.ends, index, side="right"))]

    def _load(self, shard: int) -> Rows:
        path = self.files[shard]
        try:
            rows: Rows = np.load(path, allow_pickle=False)
            if rows.dtype != np.int32 or rows.shape != (self.counts[shard], self.columns):
                raise ValueError(f"it is an array of {rows.shape}, not of {self.counts[shard]} records")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path}: does not hold the lengths of its shard ({error}); delete it, and start again: "
                "they are then measured anew"
            ) from None
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = lru_cache(KEPT_SHARDS)(self._load)


def lengths_of(encoded: Encoded) -> list[int]:
    """Tokens of the prompt and of each response."""
    return [len(encoded.ids), *(len(ids) for ids in encoded.responses)]


def measure_lengths(
    records: ShardDataset, collator: Collator[Any], *, folder: str | Path = FOLDER, num_workers: int = 0
) -> Lengths:
    """The lengths of all records, from their files; what has none yet is measured first.

    Every rank calls this; each measures other shards, and returns when all are there.

    Args:
        records: the data set.
        collator: encodes the records as training will.
        folder: where the files are kept.
        num_workers: processes of this rank that decode and encode.

    Raises:
        InputError: naming the folder, if it cannot be written to; or naming the address, if a shard cannot be
            fetched.
    """
    collator = copy(collator)
    collator.encoder = copy(collator.encoder)
    collator.encoder.max_tokens = None  # a limit says nothing about how long a record is
    place = Path(folder).expanduser() / processor_fingerprint(collator.encoder, str(records.kind))
    files = [place / _name(records, shard) for shard in range(len(records.shards))]
    try:
        place.mkdir(parents=True, exist_ok=True)
        _Measuring(records, collator, files).run(num_workers)
    except OSError as error:
        raise InputError(
            f"{place}: lengths cannot be kept there ({error.strerror}); name another data.lengths_folder"
        ) from None
    return Lengths(records, files)


def processor_fingerprint(encoder: ChatEncoder, kind: str) -> str:
    """What differs where the same record may have other lengths, wherever processor and data lie."""
    processor, tokenizer = encoder.processor, encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    settings = [
        type(processor).__name__,
        "" if encoder.is_text_only else processor.to_json_string(),
        backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True),
        str(processor.chat_template or tokenizer.chat_template),
        encoder.video_frames,
        encoder.response_suffix,
        kind,
        version("transformers"),
    ]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _name(records: ShardDataset, shard: int) -> str:
    name = shown(records.shards[shard])
    identity = (
        os.path.abspath(name) if "://" not in name else name,
        records.bytes[shard],
        records.counts[shard],
    )
    digest = hashlib.sha256(repr(tuple(map(str, identity))).encode()).hexdigest()[:16]
    return f"{Path(name).stem}-{digest}.npy"


class _Records(Dataset[tuple[int, list[list[int]]]]):
    """Lengths of chunks of records, measured by a loader's workers; none of a record that is unusable."""

    def __init__(self, records: ShardDataset, collator: Collator[Any]) -> None:
        self.records = records
        self.collator = collator

    def __getitem__(self, chunk: Chunk) -> tuple[int, list[list[int]]]:
        shard, first, stop = chunk
        return shard, [self._measure(index) for index in range(first, stop)]

    def _measure(self, index: int) -> list[int]:
        try:
            return lengths_of(self.collator.encode(self.records.record(index)))
        except StoreInputError:  # it says nothing about the record
            raise
        except InputError:  # told when its turn comes, and then by the policy for bad samples
            return []


class _Measuring:
    """A process's part of the work: it claims shards that nobody has measured or is measuring."""

    def __init__(self, records: ShardDataset, collator: Collator[Any], files: Sequence[Path]) -> None:
        self.records = records
        self.collator = collator
        self.files = files
        self.ends = np.cumsum(records.counts)
        self.locks: dict[int, FileLock] = {}
        self.rows: dict[int, list[list[int]]] = {}

    def run(self, num_workers: int) -> None:
        """Measure, and wait for what others are measuring; who dies leaves its shards to those who wait."""
        missing = self._missing()
        if not missing:
            return
        started, samples = time.perf_counter(), self._samples(missing)
        rank_zero_info(f"the tokens of {samples:,} records are counted, once: {self.files[0].parent}")
        try:
            with _progress() as progress:
                task = progress.add_task("tokens of records", total=samples, rate="")
                while missing:
                    for _ in self._measure(missing, num_workers):
                        done = samples - self._samples(self._missing()) + sum(map(len, self.rows.values()))
                        rate = f"{done / (time.perf_counter() - started):,.0f} a second"
                        progress.update(task, completed=done, rate=rate)
                    missing = self._missing()
                    time.sleep(POLL_S if missing else 0)
        finally:
            for lock in self.locks.values():
                lock.release()
        rate = f"{samples / (time.perf_counter() - started):,.0f}"
        rank_zero_info(f"the tokens of {samples:,} records are counted, {rate} records a second")

    def _samples(self, shards: Sequence[int]) -> int:
        return int(sum(self.records.counts[shard] for shard in shards))

    def _missing(self) -> list[int]:
        return [
            shard for shard, file in enumerate(self.files) if self.records.counts[shard] and not file.exists()
        ]

    def _measure(self, missing: Sequence[int], num_workers: int) -> Iterator[None]:
        """Measure what can be claimed; tells at times that it has come further."""
        loader: DataLoader[Any] = DataLoader(
            _Records(self.records, self.collator),
            batch_size=None,
            sampler=_Claims(self, missing),
            num_workers=num_workers,
            worker_init_fn=prepare_worker,
            generator=Generator(),  # of its own, so that a run that measures draws what another one draws
        )
        told = time.perf_counter()
        for shard, rows in loader:
            done = self.rows.setdefault(shard, [])
            done += rows
            if len(done) == self.records.counts[shard]:
                _write(self.files[shard], self.rows.pop(shard), columns=COLUMNS[self.records.kind])
                self.locks.pop(shard).release()
            if time.perf_counter() > told + TELL_S:
                told = time.perf_counter()
                yield

    def claim(self, missing: Sequence[int]) -> Iterator[Chunk]:
        """Chunks of the shards that this process gets, as it comes to them."""
        for shard in missing:
            file = self.files[shard]
            lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            if file.exists():  # another process was quicker
                lock.release()
                continue
            self.locks[shard] = lock
            stop = int(self.ends[shard])
            for first in range(stop - int(self.records.counts[shard]), stop, CHUNK):
                yield shard, first, min(first + CHUNK, stop)


class _Claims:
    """A loader's sampler that claims shards while it is iterated over."""

    def __init__(self, measuring: _Measuring, missing: Sequence[int]) -> None:
        self.measuring = measuring
        self.missing = missing

    def __iter__(self) -> Iterator[Chunk]:
        return self.measuring.claim(self.missing)


def _write(file: Path, found: Sequence[Sequence[int]], *, columns: int) -> None:
    rows = np.full((len(found), columns), UNUSABLE, dtype=np.int32)
    for number, row in enumerate(found):
        rows[number, : len(row)] = row
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with temporary.open("wb") as stream:
        np.save(stream, rows)
    temporary.replace(file)


def _progress() -> Progress:
    texts = TextColumn("{task.completed:,.0f} of {task.total:,.0f}"), TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), *texts, TimeRemainingColumn())
    is_first = getattr(rank_zero_only, "rank", 0) == 0
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_first)
