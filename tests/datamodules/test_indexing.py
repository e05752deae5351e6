# SPDX-License-Identifier: Apache-2.0
"""Tars from elsewhere get the sidecars and the manifest that the writer would have given them."""

import json
import shutil

import pytest

from ixc_lightning.datamodules.index import index_path
from ixc_lightning.datamodules.indexing import check_shards, index_shards, paths_of, renew_manifest
from ixc_lightning.datamodules.manifest import MANIFEST, Manifest
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError
from tests.datamodules.test_manifest import save_version_1


def _record(number, **fields):
    raw = {"id": str(number), "source": "test", "domain": f"d{number % 2}"}
    raw["messages"] = [{"role": "user", "content": f"What is {number}?"}]
    return {**raw, "chosen": "two", "rejected": "three", **fields}


@pytest.fixture
def written(tmp_path):
    """A folder of three shards as the writer leaves it."""
    samples = [Sample(f"s{number}", _record(number)) for number in range(6)]
    write_shards(samples, tmp_path / "written", kind="preference", samples_per_shard=2)
    return tmp_path / "written"


@pytest.fixture
def bare(written, tmp_path):
    """The same tars alone."""
    (tmp_path / "bare").mkdir()
    for path in written.glob("*.tar"):
        shutil.copy(path, tmp_path / "bare")
    return tmp_path / "bare"


def _index(folder):
    shards = list(index_shards(paths_of(folder)))
    return [shard.action for shard in shards], shards


def test_sidecars_and_manifest_are_those_of_the_writer(written, bare):
    actions, shards = _index(bare)
    assert actions == ["written"] * 3
    renew_manifest(bare, shards)
    names = sorted(path.name for path in written.iterdir())
    assert sorted(path.name for path in bare.iterdir()) == names
    for name in names:
        assert (bare / name).read_bytes() == (written / name).read_bytes()
    assert len(ShardDataset(bare, kind="preference")) == 6


def test_a_sound_sidecar_is_left_alone_and_any_other_is_renewed(written):
    first, second, third = paths_of(written)
    index_path(second).write_text("no index")
    index_path(third).unlink()
    before = index_path(first).stat().st_mtime_ns
    assert _index(written)[0] == ["there", "renewed", "written"]
    assert index_path(first).stat().st_mtime_ns == before
    assert _index(written)[0] == ["there"] * 3
    shutil.copy(first, second)
    with second.open("ab") as stream:
        stream.write(bytes(512))
    assert _index(written)[0] == ["there", "renewed", "there"]


def test_a_sidecar_that_lost_its_end_is_renewed(written):
    path = paths_of(written)[0]
    sidecar = index_path(path)
    whole = sidecar.read_bytes()
    sidecar.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert _index(written)[0][0] == "renewed"
    assert sidecar.read_bytes() == whole


@pytest.mark.parametrize("kind", ["preference", "instruction", "prompt"])
def test_the_kind_is_read_off_the_records(kind, tmp_path):
    raw = _record(0)
    if kind != "preference":
        del raw["chosen"], raw["rejected"]
    if kind == "instruction":
        raw["messages"] = [*raw["messages"], {"role": "assistant", "content": "Zero."}]
    write_shards([Sample("a", raw)], tmp_path / kind, kind=kind)
    expected = Manifest.load(tmp_path / kind)
    (tmp_path / kind / MANIFEST).unlink()
    assert renew_manifest(tmp_path / kind, _index(tmp_path / kind)[1]) == expected


def test_a_folder_of_two_kinds_is_refused(bare, tmp_path):
    raw = _record(0)
    del raw["chosen"], raw["rejected"]
    write_shards([Sample("a", raw)], tmp_path / "prompts", kind="prompt")
    shutil.copy(tmp_path / "prompts/shard-000000.tar", bare / "zzz.tar")
    shards = _index(bare)[1]
    with pytest.raises(InputError, match=r"records of one kind, but .*preference .*, prompt \(zzz\.tar\)"):
        renew_manifest(bare, shards)
    assert not (bare / MANIFEST).exists()


def test_a_damaged_tar_is_named(bare):
    path = paths_of(bare)[1]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"shard-000001\.tar"):
        _index(bare)
    assert not index_path(path).exists()


def _problems(folder):
    return [checked.problem for checked in check_shards(paths_of(folder))]


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_sound_shards_pass_the_check(written):
    assert _problems(written) == ["", "", ""]


@pytest.mark.parametrize("at", [600, -1])  # in a JSON, and in the padding
def test_a_single_bit_is_found_and_the_witnesses_are_named(written, at):
    _flip(paths_of(written)[1], at)
    expected = "is not the tar of manifest.json and shard-000001.index.jsonl"
    assert _problems(written) == ["", expected, ""]


def test_each_witness_is_enough(written):
    first, second, third = paths_of(written)
    _flip(first, 600)
    index_path(first).unlink()
    assert _problems(written)[0] == "is not the tar of manifest.json"
    (written / MANIFEST).unlink()
    _flip(second, 600)
    assert _problems(written)[1] == "is not the tar of shard-000001.index.jsonl"
    index_path(third).unlink()
    assert (
        _problems(written)[0]
        == _problems(written)[2]
        == ("no checksum is known; run index without --check first")
    )


def test_a_shard_that_was_cut_off_fails_the_check(written):
    path = paths_of(written)[2]
    path.write_bytes(path.read_bytes()[:-512])
    assert "shard-000002.index.jsonl was made from another tar" in _problems(written)[2]


def test_a_shard_of_the_manifest_that_is_missing_is_named(written):
    paths_of(written)[2].unlink()
    with pytest.raises(InputError, match=r"shard-000002\.tar: is in the manifest, but not in the folder"):
        _problems(written)


def test_the_manifest_is_json_with_names_as_they_are(bare):
    renew_manifest(bare, _index(bare)[1])
    assert json.loads((bare / MANIFEST).read_text())["domains"] == {"d0": 3, "d1": 3}


def test_what_lies_at_an_address_is_not_indexed():
    with pytest.raises(InputError, match=r"h/a.tar\?…: only tars on a disk .* run index on a local"):
        paths_of("https://h/a.tar?sig=1")


def test_a_sound_manifest_is_left_alone_and_one_of_the_first_version_is_renewed(written):
    shards = _index(written)[1]
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    assert renew_manifest(written, shards) is None
    manifest = Manifest.load(written)
    (written / manifest.table.file).unlink()
    save_version_1(manifest, written)
    assert renew_manifest(written, shards) == manifest
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


@pytest.mark.parametrize("harm", ["junk", "table gone", "table damaged", "another kind"])
def test_a_damaged_manifest_is_renewed(harm, written):
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    table = written / Manifest.load(written).table.file
    match harm:
        case "junk":
            (written / MANIFEST).write_text("[]")
        case "table gone":
            table.unlink()
        case "table damaged":
            _flip(table, -1)
        case "another kind":
            text = (written / MANIFEST).read_text()
            (written / MANIFEST).write_text(text.replace("preference", "praeference"))
    renew_manifest(written, _index(written)[1])
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


def test_a_tar_that_came_later_is_told_by_the_check_and_taken_in_by_the_index(written, tmp_path):
    write_shards([Sample("s9", _record(9))], tmp_path / "more", kind="preference")
    shutil.copy(tmp_path / "more/shard-000000.tar", written / "shard-000003.tar")
    assert _problems(written) == ["", "", "", "is not in manifest.json; run index without --check"]
    renew_manifest(written, _index(written)[1])
    assert _problems(written) == [""] * 4
    assert len(ShardDataset(written, kind="preference")) == 7


def test_the_check_finds_a_damaged_table(written):
    table = written / Manifest.load(written).table.file
    _flip(table, -1)  # of a checksum
    with pytest.raises(InputError, match=f"{table.name}: is damaged, its SHA-256 is"):
        _problems(written)
