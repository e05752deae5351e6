# SPDX-License-Identifier: Apache-2.0
"""Files of the scores of a benchmark's items, one line an item, in the order of the benchmark."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ixc_lightning.metrics.benchmark import Benchmark, ScoredItem
from ixc_lightning.types import InputError

FIELDS = ("benchmark", "model", "row", "id", "group", "subgroup", "digest", "chosen", "rejected")
TEXTS = ("benchmark", "model", "id", "group", "subgroup", "digest")


class Results(NamedTuple):
    """What a file of scores holds.

    Attributes:
        benchmark: name of the benchmark.
        model: name of the model.
        items: with their scores, in the order of the file.
    """

    benchmark: str
    model: str
    items: list[ScoredItem]


def write_results(folder: Path, benchmark: Benchmark, model: str, items: Sequence[ScoredItem]) -> list[Path]:
    """Write ``NAME.jsonl`` and, where pyarrow is installed, ``NAME.parquet``, each whole or not at all.

    A score that is no number is null. ``result`` is how right the item is, in [0, 1].

    Args:
        folder: made if it is not there.
        benchmark: whose items these are; its name is that of the files.
        model: name of the model, written into every row.
        items: in the order of the benchmark.

    Returns:
        The paths of the files.

    Raises:
        InputError: the folder cannot be written to.
    """
    results = benchmark.results(items).tolist()
    rows = [
        {"benchmark": benchmark.name, "model": model, **_row(item), "result": result}
        for item, result in zip(items, results, strict=True)
    ]
    path = folder / benchmark.name
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    written = [write_whole(path.with_suffix(".jsonl"), lambda file: file.write_text(lines, "utf-8"))]
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return written
    table = pyarrow.Table.from_pylist(rows)
    return [
        *written,
        write_whole(path.with_suffix(".parquet"), lambda file: parquet.write_table(table, file)),
    ]


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file beside its place and move it there.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another folder") from None
    return path


def read_results(path: str) -> Results:
    """Return what a file holds that ``write_results`` wrote, JSON Lines or Parquet.

    Raises:
        InputError: naming file and row, if it is not such a file, or holds more than one benchmark.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{path}: no such file; `test` with a recipe of recipes/evaluate writes it")
    rows = list(_parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file))
    if not rows:
        raise InputError(f"{path}: holds no item; was the evaluation ended early?")
    for number, row in enumerate(rows, start=1):
        _check(row, f"{path}, row {number}")
    names = sorted({row["benchmark"] for row in rows})
    if len(names) > 1:
        raise InputError(f"{path}: holds items of {', '.join(names)}; give one benchmark to a file")
    return Results(names[0], rows[0]["model"], [_item(row) for row in rows])


def _row(item: ScoredItem) -> dict[str, Any]:
    fields = item._asdict()
    for side in ("chosen", "rejected"):
        fields[side] = [score if math.isfinite(score) else None for score in fields[side]]
    return fields


def _item(row: dict[str, Any]) -> ScoredItem:
    return ScoredItem(
        row=row["row"],
        id=row["id"],
        group=row["group"],
        subgroup=row["subgroup"],
        digest=row["digest"],
        chosen=_scores(row["chosen"]),
        rejected=_scores(row["rejected"]),
    )


def _scores(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)


def _json_rows(file: Path) -> Iterable[Any]:
    try:
        for line in file.read_text("utf-8").splitlines():
            if line.strip():
                yield json.loads(line)
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file}: is no file of scores in JSON Lines ({error}); write it anew") from None


def _parquet_rows(file: Path) -> Iterable[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f"{file}: Parquet needs pyarrow; pip install 'ixc-lightning[parquet]', or give the .jsonl file"
        ) from None
    try:
        with ParquetFile(file) as table:
            yield from table.read().to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{file}: is no Parquet file, or is cut off ({error}); write it anew") from None


def _check(row: Any, where: str) -> None:
    if not isinstance(row, dict) or (missing := [name for name in FIELDS if name not in row]):
        lacks = ", ".join(missing) if isinstance(row, dict) else "its fields"
        raise InputError(f"{where}: lacks {lacks}; is this a file of scores that `test` wrote?")
    for name in TEXTS:
        if not isinstance(row[name], str):
            raise InputError(f"{where}, {name}: must be a string, not {row[name]!r}; write the file anew")
    for side in ("chosen", "rejected"):
        scores = row[side]
        if not isinstance(scores, list) or not scores or not all(map(_is_score, scores)):
            raise InputError(
                f"{where}, {side}: must be a list of numbers and nulls, not {str(scores)[:40]}; "
                "write the file anew"
            )


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
