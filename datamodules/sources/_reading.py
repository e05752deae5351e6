# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set, one after the other, from Parquet, JSON Lines and JSON files.

Memory stays bounded whatever the size of the files: JSON Lines by lines, Parquet by row groups, and a JSON
list item by item.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ixc_lightning.types import InputError

SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""Names of the files that a folder is searched for."""
BATCH_ROWS = 64
CHUNK = 1 << 20
MAX_ITEM = 1 << 28
"""Characters of the longest item of a JSON list; a longer one is taken for a list that never closes."""


class Row(NamedTuple):
    """One row of a data set, and where it lies.

    Attributes:
        fields: the values by column.
        file: path of the file.
        number: place in the file, counted from 1.
    """

    fields: Mapping[str, Any]
    file: str
    number: int

    def error(self, field: str, problem: str) -> InputError:
        """Return the error that names file, row and field."""
        return InputError(f"{self.file}, row {self.number}, {field}: {problem}")

    def get(self, field: str) -> Any:
        """Return a value, or None where the row lacks it."""
        return self.fields.get(field)

    def require(self, field: str) -> Any:
        """Return a value that must be there.

        Raises:
            InputError: naming file, row and field.
        """
        if self.fields.get(field) is None:
            raise self.error(field, "is missing; is this the data set that the converter is for?")
        return self.fields[field]

    def text(self, field: str) -> str:
        """Return a value that must be a string; raises as ``require``."""
        value = self.require(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be a string, not {type(value).__name__}")
        return value

    def items(self, field: str) -> list[Any]:
        """Return a value that must be a list; raises as ``require``."""
        value = self.require(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {type(value).__name__}")
        return value

    def integer(self, field: str, choices: Iterable[int]) -> int:
        """Return a value that must be one of ``choices``; raises as ``require``."""
        value, choices = self.require(field), tuple(choices)
        if value not in choices:
            raise self.error(field, f"must be one of {', '.join(map(str, choices))}, not {value!r}")
        return int(value)

    def number_of(self, field: str) -> float:
        """Return a value that must be a finite number; raises as ``require``."""
        value = self.require(field)
        # The comparison also refuses NaN, and integers too long for a float.
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.error(field, f"must be a finite number, not {str(value)[:40]}")
        return float(value)

    def id(self, field: str = "id") -> str:
        """Return the row's own id, or the name of the file and the number of the row where it has none."""
        value = self.fields.get(field)
        return f"{Path(self.file).name.split('.')[0]}-{self.number}" if value in (None, "") else str(value)


def read_rows(path: Path, columns: Iterable[str] | None = None) -> Iterator[Row]:
    """Give the rows of one file.

    Args:
        path: a file whose name ends in one of ``SUFFIXES``.
        columns: columns of a Parquet file to read; others come with the value None. Null reads all.

    Raises:
        InputError: naming file and row, if the file is not what its name says.
    """
    if path.suffix == ".parquet":
        rows = _parquet(path, None if columns is None else set(columns))
    elif path.name.endswith(SUFFIXES):
        rows = _json(path)
    else:
        raise InputError(f"{path}: is none of {', '.join(SUFFIXES)}; unpack it, or name the data file")
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise InputError(
                f"{path}, row {number}: must be an object with fields, not {type(fields).__name__}"
            )
        yield Row(fields, str(path), number)


def _parquet(path: Path, columns: set[str] | None) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow; pip install 'ixc-lightning[parquet]'") from None
    try:
        # Else what was read stays in memory until the file is closed.
        with ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if columns is None or name in columns]
            # What is not read is named all the same: unknown columns are reported.
            rest = dict.fromkeys(name for name in names if name not in wanted)
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                for fields in batch.to_pylist():
                    yield fields | rest
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: is no Parquet file, or is cut off ({error}); download it again") from None


def _json(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as binary:
            stream = TextIOWrapper(cast(BinaryIO, binary), encoding="utf-8")
            start = stream.read(1)
            while start.isspace() or start == "\ufeff":
                start = stream.read(1)
            # Many a file named .json holds JSON Lines.
            yield from _items(stream, path) if start == "[" else _lines(start, stream, path)
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 to its end ({error}); download it again") from None


def _lines(start: str, stream: TextIOWrapper, path: Path) -> Iterator[Any]:
    for number, line in enumerate(stream, start=1):
        text = (start if number == 1 else "") + line
        if text.strip():
            try:
                yield json.loads(text)
            except (JSONDecodeError, RecursionError) as error:
                problem = f"is no JSON ({error}); each line must be one whole object"
                raise InputError(f"{path}, line {number}: {problem}") from None


def _items(stream: TextIOWrapper, path: Path) -> Iterator[Any]:
    """Give the items of a JSON list whose ``[`` is read.

    ``json.load`` would hold the whole list in memory; Arrow's streaming reader takes JSON Lines alone.
    """
    decoder, text, place, number = json.JSONDecoder(), "", 0, 1
    while True:
        place = _skip(text, place)
        if text[place : place + 1] == "]":
            return
        try:
            # A number or literal could go on behind the text read so far; only objects are wanted.
            if place >= len(text):
                raise JSONDecodeError("the list is not closed", text, place)
            item, end = decoder.raw_decode(text, place)
        except (JSONDecodeError, RecursionError) as error:
            more = stream.read(max(CHUNK, len(text) - place))
            if not more or len(text) - place > MAX_ITEM:
                message = getattr(error, "msg", "is nested too deep")
                raise InputError(f"{path}, row {number}: is no JSON, or is cut off ({message})") from None
            text, place = text[place:] + more, 0
        else:
            yield item
            place, number = end, number + 1


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\n", "\r", "\t", ","):
        place += 1
    return place
