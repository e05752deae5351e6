# SPDX-License-Identifier: Apache-2.0
"""Files of scores give back what was written, in order, and say what is wrong with others."""

import builtins
import json

import pytest

from ixc_lightning.metrics import RewardBench2
from ixc_lightning.metrics.result_files import read_results, write_results
from ixc_lightning.types import InputError
from tests.metrics.scored import NAN, item, numbered

ITEMS = numbered(
    item("math", 0.1, (0.2, 1e-30, -3.5), id="ä"),
    item("ties", (1.0, NAN), (float("inf"),), id="tied:3", subgroup="x"),
)


def _same(first, second):
    return repr(first) == repr(second)  # NaN is not equal to itself


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_read_with_every_digit_of_the_scores(suffix, tmp_path):
    write_results(tmp_path / "new", RewardBench2(), "model", ITEMS)
    results = read_results(str(tmp_path / f"new/rewardbench_2{suffix}"))
    finite = [ITEMS[0], ITEMS[1]._replace(rejected=(NAN,))]  # what is no finite number is no score
    assert (results.benchmark, results.model) == ("rewardbench_2", "model")
    assert _same(results.items, finite)


def test_a_line_holds_the_result_and_null_for_no_number(tmp_path):
    path, _ = write_results(tmp_path, RewardBench2(), "model", ITEMS)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["result"] for row in rows] == [0.0, 0.0]
    assert rows[1]["chosen"] == [1.0, None]
    assert [row["row"] for row in rows] == [0, 1]


def test_nothing_is_left_behind_but_the_files(tmp_path):
    write_results(tmp_path, RewardBench2(), "model", ITEMS)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "rewardbench_2.jsonl",
        "rewardbench_2.parquet",
    ]


def test_without_pyarrow_the_lines_alone_are_written(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (path,) = write_results(tmp_path, RewardBench2(), "model", ITEMS)
    assert path.suffix == ".jsonl"
    with pytest.raises(InputError, match="Parquet needs pyarrow"):
        read_results(str(_touched(tmp_path / "x.parquet")))


def _touched(path):
    path.write_bytes(b"")
    return path


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_results(tmp_path / "file", RewardBench2(), "model", ITEMS)


def _file(tmp_path, **fields):
    write_results(tmp_path, RewardBench2(), "model", ITEMS)
    path = tmp_path / "rewardbench_2.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1] = {name: value for name, value in (rows[1] | fields).items() if value is not ...}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"chosen": ...}, r"row 2: lacks chosen"),
        ({"chosen": []}, r"row 2, chosen: must be a list of numbers"),
        ({"rejected": ["a"]}, r"row 2, rejected: must be a list of numbers"),
        ({"rejected": 3.0}, r"row 2, rejected: must be a list of numbers"),
        ({"model": 3}, r"row 2, model: must be a string"),
        ({"benchmark": "rm_bench"}, r"holds items of rewardbench_2, rm_bench"),
    ],
)
def test_a_row_that_is_no_item_is_named(fields, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read_results(_file(tmp_path, **fields))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b"", "holds no item"),
        ("a.jsonl", b"{", "is no file of scores in JSON Lines"),
        ("a.jsonl", b"[1, 2]", "row 1: lacks its fields"),
        ("a.jsonl", b"\xff\xfe", "is no file of scores in JSON Lines"),
        ("a.parquet", b"PAR1", "is no Parquet file"),
    ],
)
def test_a_file_that_is_none_of_ours_is_an_error(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        read_results(str(tmp_path / name))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_results(str(tmp_path / "a.jsonl"))
