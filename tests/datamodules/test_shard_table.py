# SPDX-License-Identifier: Apache-2.0
"""The table gives back the rows it was made of, from a file too, and never anything but rows or a message."""

import pickle
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ixc_lightning.datamodules.shard_table import DIGEST, ShardRow, ShardTable
from ixc_lightning.types import InputError

MANY = 100_000
OPENING_BYTES = 200_000
"""What opening may allocate; one Python object for each of ``MANY`` shards would be many times that."""
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=20)
digests = st.one_of(st.just(""), st.binary(min_size=DIGEST, max_size=DIGEST).filter(any).map(bytes.hex))
rows_of = st.dictionaries(
    names, st.tuples(st.integers(0, 3000), st.integers(0, 2**50), digests), max_size=8
).map(lambda found: [ShardRow(name, *found[name]) for name in sorted(found)])


def written(rows, folder):
    path = folder / "table.safetensors"
    ShardTable.of(rows).save(path)
    return path


def rows_for(count):
    return [ShardRow(f"shard-{n:06d}.tar", 3, 10_240 + n, f"{n + 1:064x}") for n in range(count)]


@settings(deadline=None)
@given(rows_of)
def test_the_rows_come_back_from_memory_and_from_a_file(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = written(rows, Path(folder))
        for table in (ShardTable.of(rows), ShardTable.open(path, name="t")):
            assert list(table) == rows
            assert table[:] == rows
            assert table.samples.tolist() == [row.samples for row in rows]
            assert table.bytes.tolist() == [row.bytes for row in rows]
            assert [table.find(row.file) for row in rows] == list(range(len(rows)))
            assert table.total == sum(row.samples for row in rows)
        assert ShardTable.open(path, name="t") == ShardTable.of(rows)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20).filter(any))
def test_each_sample_lies_where_counting_finds_it(counts):
    table = ShardTable.of(ShardRow(f"{n:03d}.tar", count, 1, "") for n, count in enumerate(counts))
    expected = [(shard, place) for shard, count in enumerate(counts) for place in range(count)]
    assert [table.locate(sample) for sample in range(table.total)] == expected
    with pytest.raises(InputError):
        table.locate(table.total)


def test_what_is_not_in_it_is_not_found(tmp_path):
    table = ShardTable.open(written(rows_for(7), tmp_path), name="t")
    assert [table.find(name) for name in ("a.tar", "shard-000003", "shard-000003.tarx", "z.tar")] == [
        None
    ] * 4
    with pytest.raises(IndexError, match="shard 7 of 7"):
        table[7]
    assert table[-1] == table[6]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first = written(rows_for(50), tmp_path).read_bytes()
    assert written(rows_for(50), tmp_path).read_bytes() == first
    assert written(rows_for(51), tmp_path).read_bytes() != first


def test_opening_many_takes_no_object_for_each(tmp_path):
    path = written(rows_for(MANY), tmp_path)
    ShardTable.open(path, name="t")  # what the libraries allocate once
    tracemalloc.start()
    try:
        table = ShardTable.open(path, name="t")
        assert table.locate(3 * MANY - 1) == (MANY - 1, 2)
        assert table.find(f"shard-{MANY - 5:06d}.tar") == MANY - 5
        assert tracemalloc.get_traced_memory()[1] < OPENING_BYTES
    finally:
        tracemalloc.stop()


def test_a_pickled_copy_of_a_file_is_its_path(tmp_path):
    table = ShardTable.open(written(rows_for(1000), tmp_path), name="t")
    packed = pickle.dumps(table)
    assert len(packed) < 1000
    assert pickle.loads(packed) == table
    plain = ShardTable.of(rows_for(10))
    assert pickle.loads(pickle.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ShardRow("a", -1, 1, ""), "negative"),
        (ShardRow("a", 1, -1, ""), "negative"),
        (ShardRow("a", 2**63, 1, ""), "too large"),
        (ShardRow("a", 1, 1, "00"), "no SHA-256"),
        (ShardRow("a", 1, 1, "x" * 64), "non-hexadecimal"),
    ],
)
def test_rows_that_cannot_be_are_refused(row, problem):
    with pytest.raises(ValueError, match=problem):
        ShardTable.of([row])


def _changed(column, change):
    def spoil(path):
        columns = load_file(path)
        columns[column] = change(columns[column])
        save_file(columns, path)

    return spoil


def _plus(place, number):
    def change(column):
        column = column.copy()
        column[place] += number
        return column

    return change


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path):
    path.write_bytes(b"")


def _junk(path):
    path.write_bytes(b"\x80\x04." * 100)


def _rename(path):
    save_file({"other": np.zeros(3)}, path)


SPOILT = [
    (_cut, "is no table of shards"),
    (_empty, "is no table of shards"),
    (_junk, "is no table of shards"),
    (_rename, "column 'ends' is missing"),
    (_changed("samples", lambda column: column[:-1]), "another type or length"),
    (_changed("bytes", lambda column: column.astype(np.int32)), "another type or length"),
    (_changed("ends", lambda column: column[None]), "another type or length"),
    (_changed("names", lambda column: column.astype(np.int8)), "the names are no bytes"),
    (_changed("sha256", lambda column: column[:, :31]), "checksums are not those of as many"),
    (_changed("samples", _plus(3, 1)), "do not add up"),
    (_changed("ends", _plus(3, -900)), "do not add up"),
    (_changed("bytes", _plus(3, -(2**40))), "a size is negative"),
    (_changed("name_ends", _plus(3, 2**40)), "the name of shard 3 is not where it should be"),
    (_changed("name_ends", _plus(3, -(2**40))), "the name of shard 3 is not where it should be"),
]


def use(path):
    """Everything that a table is used for."""
    table = ShardTable.open(path, name="set/table")
    return list(table), table.samples, table.bytes, [table.locate(n) for n in range(min(table.total, 100))]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_damaged_file_is_named(spoil, message, tmp_path):
    path = written(rows_for(9), tmp_path)
    spoil(path)
    with pytest.raises(
        InputError, match=rf"^set/table: .*({message}|shard 3).*; copy it again, or run `index`"
    ):
        use(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_spoilt_file_gives_rows_or_a_message(data):
    with tempfile.TemporaryDirectory() as folder:
        path = written(rows_for(5), Path(folder))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
        size = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
        path.write_bytes(content[:size])
        found = []
        with suppress(InputError):
            found, *_ = use(path)
        assert all(type(row) is ShardRow for row in found)
