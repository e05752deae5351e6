# SPDX-License-Identifier: Apache-2.0
"""Entries of many ranks and runs come together in order, once each, whatever a kill left behind."""

import pytest

from ixc_lightning.callbacks.parts import MAX_OPEN, PartFiles
from ixc_lightning.types import InputError


def _written(folder, rank, rows):
    parts = PartFiles(folder, rank=rank)
    parts.append([{"row": row, "by": rank} for row in rows])
    parts.close()
    return parts


def test_entries_of_all_ranks_and_runs_come_in_the_order_of_their_rows(tmp_path):
    _written(tmp_path, 0, [0, 1, 4])
    _written(tmp_path, 1, [2, 3])
    _written(tmp_path, 0, [7, 5])
    parts = PartFiles(tmp_path, rank=0)
    assert [entry["row"] for entry in parts.in_order()] == [0, 1, 2, 3, 4, 5, 7]
    assert sorted(parts.lines().rows.tolist()) == [0, 1, 2, 3, 4, 5, 7]


def test_ranks_that_start_together_write_to_files_of_their_own_and_never_to_old_ones(tmp_path):
    ranks = [PartFiles(tmp_path, rank=rank) for rank in range(2)]
    for parts in ranks:
        parts.append([{"row": 1}])
        parts.close()
    assert len({parts.path for parts in [*ranks, PartFiles(tmp_path, rank=0)]}) == 3


def test_a_row_that_was_written_twice_counts_once_as_it_first_was(tmp_path):
    _written(tmp_path, 0, [3])
    _written(tmp_path, 1, [3])
    assert list(PartFiles(tmp_path, rank=0).in_order()) == [{"row": 3, "by": 0}]


def test_a_line_that_was_half_written_is_no_entry(tmp_path):
    path = _written(tmp_path, 0, [0, 1]).path
    for cut in range(1, len('{"row": 1, "by": 0}\n') + 1):
        path.write_text('{"row": 0, "by": 0}\n{"row": 1, "by": 0}\n'[:-cut])
        assert PartFiles(tmp_path, rank=0).lines().rows.tolist() == [0]


def test_a_line_that_is_no_entry_is_named(tmp_path):
    path = _written(tmp_path, 0, [0]).path
    with path.open("a") as file:
        file.write('{"key": 1}\n')
    with pytest.raises(InputError, match=r"0001-00000.jsonl, byte 20: is no entry"):
        PartFiles(tmp_path, rank=0).lines()


def test_more_files_are_read_than_may_be_open(tmp_path):
    count = MAX_OPEN + 5
    ranks = [PartFiles(tmp_path, rank=rank) for rank in range(count)]
    for number, parts in enumerate(ranks):
        parts.append([{"row": row} for row in (number, number + count)])
        parts.close()
    assert [entry["row"] for entry in PartFiles(tmp_path, rank=0).in_order()] == list(range(2 * count))


def test_nothing_is_made_before_something_is_written(tmp_path):
    parts = PartFiles(tmp_path / "parts", rank=0)
    assert len(parts.lines().rows) == 0
    parts.close()
    assert not (tmp_path / "parts").exists()
