# SPDX-License-Identifier: Apache-2.0
"""Tables are there whole or not at all."""

import json

import pyarrow.parquet as parquet
import pytest

from ixc_lightning.callbacks import tables
from ixc_lightning.types import InputError

ROWS = [{"a": 1, "b": "ä"}, {"a": 2, "b": None}, {"a": 3}]


def test_both_formats_hold_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP", 2)
    tables.write_jsonl(tmp_path / "t.jsonl", ROWS)
    tables.write_parquet(tmp_path / "t.parquet", iter(ROWS), {"a": "int64", "b": "string"})
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == ROWS
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [*ROWS[:2], {"a": 3, "b": None}]


def test_a_table_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "t.jsonl").write_text("old")

    def rows():
        yield ROWS[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tables.write_jsonl(tmp_path / "t.jsonl", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    assert (tmp_path / "t.jsonl").read_text() == "old"


def test_without_pyarrow_parquet_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'ixc-lightning\[parquet\]'"):
        tables.check_parquet()
