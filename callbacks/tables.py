# SPDX-License-Identifier: Apache-2.0
"""Tables on the disk that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from ixc_lightning.types import InputError

GROUP = 10_000
"""Rows of a parquet file that are written at a time."""


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    with replaced(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write a parquet file.

    Args:
        path: where.
        rows: by column; what a row lacks is null.
        columns: pyarrow's name of each column's type.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    with replaced(path) as unfinished, parquet.ParquetWriter(unfinished, schema) as writer:
        waiting = iter(rows)
        while group := [dict(row) for row in islice(waiting, GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def check_parquet() -> None:
    """Find out before a run, not after it, that no parquet can be written.

    Raises:
        InputError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise InputError(
            "parquet needs pyarrow: pip install 'ixc-lightning[parquet]', or give the writer formats: [jsonl]"
        )


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of ``path`` when all went well."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
