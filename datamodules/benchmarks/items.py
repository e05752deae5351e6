# SPDX-License-Identifier: Apache-2.0
"""The items of a benchmark: their texts in memory, their media read when their turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ixc_lightning.datamodules.benchmarks.reader import BenchmarkItem, BenchmarkReader
from ixc_lightning.datamodules.conversations import Candidates
from ixc_lightning.datamodules.sources._drafts import Draft, assistant, render
from ixc_lightning.datamodules.sources._media import MediaStore, Medium
from ixc_lightning.datamodules.sources._reading import Row, read_rows
from ixc_lightning.types import InputError, Record


class BenchmarkItems:
    """The items of a benchmark by number, in the order of its files.

    Files are read from front to back: to ask for items in their order reads each file once. A copy, in a
    loader's worker, reads for itself.

    Args:
        reader: knows the benchmark.
        path: file, folder, glob pattern or data set of the hub that holds it.
        media: folders or zips below which the pictures and clips lie; null is the folder of each file.
        frames_per_second: of clips that are folders of JPEG frames, which do not tell it.

    Attributes:
        items: all items, without their media.

    Raises:
        InputError: naming file, row and field, if there is no such benchmark.
    """

    def __init__(
        self,
        reader: BenchmarkReader,
        path: str,
        *,
        media: str | list[str] | None = None,
        frames_per_second: int = 1,
    ) -> None:
        self.reader = reader
        self.files = reader.files(path)
        self.media = media
        self.frames_per_second = frames_per_second
        self.items: list[BenchmarkItem] = [reader.item(row) for row in self._rows(texts_only=True)]
        if not self.items:
            raise InputError(f"{path}: holds no item; name the benchmark's file")
        self._forget()

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def candidates(self, number: int) -> Candidates:
        """An item as it is scored, its better responses first.

        Raises:
            InputError: naming file, row and field, if its media cannot be read.
        """
        item, row = self.items[number], self._row(number)
        draft = Draft(item.id, item.group, self.reader.messages(item, self._media(row)))
        rendered, media = render(draft, type(self.reader).__name__)
        texts = (*item.chosen, *item.rejected)
        names = [f"chosen[{n}]" for n in range(len(item.chosen))]
        return Candidates(
            record=Record(
                key=str(row.number),
                shard=row.file,
                source=rendered["source"],
                domain=item.group,
                messages=tuple(rendered["messages"]),
                media=media,
            ),
            prompt=rendered["messages"],
            names=[*names, *(f"rejected[{n}]" for n in range(len(item.rejected)))],
            answers=[render(Draft("", "", [assistant(text)]), "")[0]["messages"] for text in texts],
        )

    def place(self, number: int) -> tuple[str, str]:
        """File and number of the row of an item, for messages."""
        row = self._row(number)
        return row.file, str(row.number)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is open."""
        return {**self.__dict__, "_open": None, "_next": 0, "_last": None, "_store": None}

    def _forget(self) -> None:
        self._open: Iterator[Row] | None = None
        self._next = 0
        self._last: Row | None = None
        self._store: MediaStore | None = None

    def _row(self, number: int) -> Row:
        """The row of an item; going back begins anew."""
        if self._last is not None and number == self._next - 1:
            return self._last
        if self._open is None or number < self._next:
            self._open, self._next = self._rows(texts_only=False), 0
        while self._next <= number:
            row = next(self._open, None)
            if row is None:
                raise InputError(f"{self.files[-1]}: has become shorter during the run; start anew")
            self._last, self._next = row, self._next + 1
        assert self._last is not None
        return self._last

    def _rows(self, *, texts_only: bool) -> Iterator[Row]:
        for file in self.files:
            yield from read_rows(file, self._texts(file) if texts_only else None)

    def _texts(self, file: Path) -> list[str] | None:
        """Columns of a Parquet file to read for the texts alone; null for all."""
        if file.suffix != ".parquet" or not self.reader.media_fields:
            return None
        names = next(iter(read_rows(file, ())), None)
        return [name for name in names.fields if name not in self.reader.media_fields] if names else None

    def _media(self, row: Row) -> list[Medium]:
        if self._store is None:
            self._store = MediaStore(self.media, fps=self.frames_per_second)
        fields = [field for field in self.reader.media_fields if row.get(field)]
        return [medium for field in fields for medium in self._store.load(row.get(field), row, field)]
