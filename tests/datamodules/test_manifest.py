# SPDX-License-Identifier: Apache-2.0
"""A manifest says the same in either version, is exchanged as a whole, and is refused if it cannot be."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixc_lightning.datamodules import manifest as module
from ixc_lightning.datamodules.index import Header
from ixc_lightning.datamodules.manifest import MANIFEST, VERSION, Manifest
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_table import ShardTable
from ixc_lightning.types import InputError

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=9)
counts = st.dictionaries(words, st.integers(1, 99), max_size=3)
headers = st.builds(
    lambda modalities, domains, size, digest: Header(
        size, sum(modalities.values()), modalities, domains, digest.hex()
    ),
    counts,
    counts,
    st.integers(0, 2**40),
    st.binary(min_size=32, max_size=32).filter(any),
)
shards_of = st.dictionaries(words.map("{}.tar".format), headers, max_size=6)
SHARDS = {
    f"shard-{n:06d}.tar": Header(10_240 + n, n + 1, {"text": n + 1}, {"reading": n}, f"{n + 1:064x}")
    for n in range(3)
}


def save_version_1(manifest, folder):
    """Write what earlier versions wrote, but with the shards in another order."""
    fields = {name: getattr(manifest, name) for name in ("kind", "samples", "modalities", "domains")}
    fields |= {"shards": [row._asdict() for row in reversed(manifest.shards)], "version": 1}
    (folder / MANIFEST).write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")


@settings(deadline=None)
@given(shards_of, st.sampled_from(Kind))
def test_both_versions_say_the_same(shards, kind):
    manifest = Manifest.of(kind, shards)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_version_1(manifest, folder)
        old = Manifest.load(folder)
        old.save(folder)
        new = Manifest.load(folder)
    assert old == new == manifest
    assert (old.version, new.version) == (1, VERSION)
    assert [row.file for row in new.shards] == sorted(shards)
    for row in new.shards:
        header = shards[row.file]
        assert row[1:] == (header.samples, header.bytes, header.sha256)


def test_the_json_is_a_summary_for_people(tmp_path):
    Manifest.of(Kind.PROMPT, SHARDS).save(tmp_path)
    found = json.loads((tmp_path / MANIFEST).read_text())
    table = found.pop("table")
    assert found == {
        "kind": "prompt",
        "samples": 6,
        "modalities": {"text": 6},
        "domains": {"reading": 3},
        "shards": 3,
        "version": VERSION,
    }
    assert table["bytes"] == (tmp_path / table["file"]).stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, table["file"]}


def test_a_new_manifest_takes_the_table_of_the_old_one_away(tmp_path):
    Manifest.of(Kind.PROMPT, SHARDS).save(tmp_path)
    (tmp_path / "manifest-mine.safetensors").write_text("another's")
    before = set(tmp_path.iterdir())
    Manifest.of(Kind.PROMPT, {}).save(tmp_path)
    gone, come = before - set(tmp_path.iterdir()), set(tmp_path.iterdir()) - before
    assert (len(gone), len(come)) == (1, 1)
    assert Manifest.load(tmp_path).samples == 0


def test_a_manifest_that_could_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    old = Manifest.of(Kind.PROMPT, SHARDS)
    old.save(tmp_path)

    def fail(*_, **__):
        raise OSError("the disk is full")

    for owner, name in ((module.json, "dumps"), (ShardTable, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="the disk is full"):
                Manifest.of(Kind.PROMPT, {}).save(tmp_path)
        assert Manifest.load(tmp_path) == old
    assert not list(tmp_path.glob(".*"))


ROW = {"file": "a.tar", "samples": 1, "bytes": 1, "sha256": ""}
TABLE = {"file": "manifest-0000000000000000.safetensors", "bytes": 1, "sha256": "0" * 64}
REFUSED = [
    ({"domains": {"reading": "3"}}, "is not a manifest"),
    ({"domains": {"reading": True}}, "a count is no number"),
    ({"domains": [1]}, "is not a manifest"),
    ({"kind": 1}, "a name is no text"),
    ({"samples": None}, "a count is no number"),
    ({"samples": -6}, "a count is no number"),
    ({"x" * 500: 1}, "unexpected field"),
    ({"version": 9}, "has version 9, not 2"),
    ({"version": [1]}, r"has version \[1\], not 2"),
]
REFUSED_1 = [
    ({"shards": [{"file": "a.tar"}]}, "samples"),
    ({"shards": [ROW | {"file": 1}]}, "another type"),
    ({"shards": [ROW | {"samples": True}]}, "another type"),
    ({"shards": [ROW | {"sha256": "abc"}]}, "is not a manifest"),
    ({"shards": [ROW, ROW]}, "listed twice"),
    ({"shards": ["a.tar"]}, "is not a manifest"),
    ({"shards": 3}, "is not a manifest"),
    ({"shards": [ROW]}, "its counts are not those of its shards"),
    ({"table": {}}, "unexpected field 'table'"),
]
REFUSED_2 = [
    ({"shards": 4}, "its counts are not those of its shards"),
    ({"samples": 7}, "its counts are not those of its shards"),
    ({"shards": [ROW]}, "its counts are not those of its shards"),
    ({"table": None}, "is not a manifest"),
    ({"table": TABLE | {"file": f"../{TABLE['file']}"}}, "no name"),
    ({"table": TABLE | {"file": 7}}, "is not a manifest"),
    ({"table": TABLE | {"bytes": "1"}}, "is not a manifest"),
    ({"table": TABLE | {"sha256": "1" * 64}}, "the name of another one"),
    ({"table": TABLE | {"other": 1}}, "is not a manifest"),
    ({"version": 1}, "is not a manifest"),
]


@pytest.mark.parametrize(
    ("version", "changes", "problem"),
    [(1, *case) for case in REFUSED + REFUSED_1] + [(2, *case) for case in REFUSED + REFUSED_2],
)
def test_a_manifest_that_cannot_be_is_refused(version, changes, problem, tmp_path):
    manifest = Manifest.of(Kind.PROMPT, SHARDS)
    manifest.save(tmp_path) if version == VERSION else save_version_1(manifest, tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=rf"manifest.json: .*{problem}.*; (delete|install)") as error:
        Manifest.load(tmp_path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, '"version"', "{}", "\udcff"])
def test_a_file_that_holds_no_manifest_is_refused(text, tmp_path):
    (tmp_path / MANIFEST).write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"manifest.json: is not a manifest"):
        Manifest.load(tmp_path)


def test_a_table_that_is_not_there_or_another_is_named(tmp_path):
    manifest = Manifest.of(Kind.PROMPT, SHARDS)
    manifest.save(tmp_path)
    table = tmp_path / Manifest.load(tmp_path).table.file
    data = table.read_bytes()
    Manifest.load(tmp_path).check_table(tmp_path)
    table.write_bytes(data.replace(b"000001.tar", b"000007.tar"))
    damaged = Manifest.load(tmp_path)  # nobody reads so much at the start
    with pytest.raises(InputError, match=f"{table.name}: is damaged, its SHA-256 is .*; copy it again, or"):
        damaged.check_table(tmp_path)
    ShardTable.of([row for row in manifest.shards for _ in range(2)]).save(table)
    with pytest.raises(InputError, match=f"{table.name}: has not the size that manifest.json says; copy"):
        Manifest.load(tmp_path)
    table.unlink()
    with pytest.raises(InputError, match=f"{table.name}: no such file, but the manifest beside it names it"):
        Manifest.load(tmp_path)
