# SPDX-License-Identifier: Apache-2.0
"""Reading: the same rows from every format, in bounded memory, and one message where a file is wrong."""

import gzip
import json
import tracemalloc
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import pytest

from ixc_lightning.datamodules.sources import _reading
from ixc_lightning.datamodules.sources._reading import read_rows
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import write_jsonl, write_parquet

ROWS = [{"id": 1, "text": 'a "[{quoted}]" naïve 数'}, {"id": 2, "text": "second"}, {"id": 3, "text": None}]


def read(path):
    return [dict(row.fields) for row in read_rows(Path(path))]


def test_every_format_gives_the_same_rows(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "lines.json").write_text("\n" + "\n\n".join(map(json.dumps, ROWS)))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in ROWS)
    write_jsonl(tmp_path / "a.jsonl", *ROWS)
    write_parquet(tmp_path / "a.parquet", *ROWS)
    for name in ("a.json", "lines.json", "a.jsonl.gz", "a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == ROWS, name


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_a_json_list_is_read_whole_wherever_a_chunk_ends(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(_reading, "CHUNK", chunk)
    (tmp_path / "a.json").write_text(
        " \ufeff [" + " ,\n".join(map(json.dumps, ROWS)) + "\n]\n", encoding="utf-8"
    )
    assert read(tmp_path / "a.json") == ROWS


def test_a_long_json_list_takes_little_memory(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": number, "text": "x" * 10_000} for number in range(2_000)]))
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2_000
    assert peak < path.stat().st_size / 2


def test_a_long_parquet_file_takes_little_memory(tmp_path):
    path, random = tmp_path / "a.parquet", Random(0)
    schema = pyarrow.schema({"data": pyarrow.binary()})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for _ in range(20):
            data = [random.randbytes(10_000) for _ in range(100)]
            writer.write_table(pyarrow.table({"data": data}, schema))
    peak = max(pyarrow.total_allocated_bytes() for _ in read_rows(path))
    assert 0 < peak < path.stat().st_size / 4


def test_only_the_columns_asked_for_are_read_and_the_others_are_named(tmp_path):
    path = Path(write_parquet(tmp_path / "a.parquet", *ROWS))
    assert [dict(row.fields) for row in read_rows(path, ["id"])] == [
        {"id": number, "text": None} for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl, line 2: is no JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a.jsonl, row 2: must be an object with fields, not list"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl: cannot be read as UTF-8"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl, row 1: is no JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            r"a.jsonl.gz: cannot be read as UTF-8 to its end",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n', mtime=0)[:10] + b"\xff" * 20,
            r"a.jsonl.gz: cannot be read",
        ),
        ("a.jsonl.gz", b"plain", r"a.jsonl.gz: cannot be read as UTF-8 to its end"),
        ("a.json", b'[{"a": 1}, {"a": 2}', r"a.json, row 3: is no JSON, or is cut off"),
        ("a.json", b'[{"a": 1}, {"a": 2', r"a.json, row 2: is no JSON, or is cut off"),
        ("a.json", b'[{"a": 1}, "b"]', r"a.json, row 2: must be an object with fields, not str"),
        ("a.json", b'{\n "a": 1\n}', r"a.json, line 1: is no JSON"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet: is no Parquet file"),
        ("a.csv", b"a,b", r"a.csv: is none of .parquet, .jsonl"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))
