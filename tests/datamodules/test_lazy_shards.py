# SPDX-License-Identifier: Apache-2.0
"""A folder with a manifest is opened without a look at its shards; what is wrong with one is told in time."""

import json
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest

from ixc_lightning.datamodules import patterns
from ixc_lightning.datamodules.index import Header, index_path
from ixc_lightning.datamodules.inspection import inspect_records, open_any
from ixc_lightning.datamodules.manifest import MANIFEST, Manifest
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_files import LocalFiles
from ixc_lightning.datamodules.shard_writer import write_shards
from ixc_lightning.datamodules.shards import Selection, ShardDataset
from ixc_lightning.types import InputError
from tests.datamodules.test_manifest import save_version_1
from tests.datamodules.test_shards import answers, sample

MANY = 100_000
OPENING_BYTES = 500_000
"""What opening may allocate; one Python object for each of ``MANY`` shards would be many times that."""
FIRST, SECOND, LAST = (f"shard-{number:06d}.tar" for number in range(3))


def write(folder, numbers=range(10)):
    """Shards of four prompts."""
    write_shards((sample(n, images=n % 3) for n in numbers), folder, kind="prompt", samples_per_shard=4)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "set")


@pytest.fixture
def unlisted(monkeypatch):
    """Makes every folder one that is too large to be listed."""
    monkeypatch.setattr(patterns, "MAX_LISTED", 0)


def test_many_shards_are_opened_without_an_object_or_a_look_for_each(tmp_path, monkeypatch):
    headers = {
        f"shard-{n:06d}.tar": Header(10_240, 1000, {"text": 1000}, {"reading": 1000}, f"{n + 1:064x}")
        for n in range(MANY)
    }
    Manifest.of(Kind.PROMPT, headers).save(tmp_path)
    for name in ("survey", "entries", "open"):
        monkeypatch.setattr(LocalFiles, name, lambda *_, **__: pytest.fail("a shard was looked at"))
    ShardDataset(tmp_path, kind="prompt")
    tracemalloc.start()
    try:
        dataset = ShardDataset(tmp_path, kind="prompt")
        assert (len(dataset), len(dataset.shards)) == (1000 * MANY, MANY)
        assert dataset.shards[-1] == tmp_path / f"shard-{MANY - 1:06d}.tar"
        assert dataset.counts[-1] == 1000
        assert len(pickle.dumps(dataset)) < OPENING_BYTES
        assert tracemalloc.get_traced_memory()[1] < OPENING_BYTES
    finally:
        tracemalloc.stop()


def test_a_missing_shard_of_a_large_folder_is_an_error_when_it_is_read(folder, unlisted):
    (folder / SECOND).unlink()
    dataset = ShardDataset(folder, kind="prompt")
    assert [dataset[n].answer for n in (0, 3, 8, 9)] == [0, 3, 8, 9]
    with pytest.raises(InputError, match=rf"{SECOND}: cannot be read \(No such file or directory\); was it"):
        dataset[5]
    assert dataset.place(5) == (str(folder / SECOND), "")


def test_a_shard_that_was_cut_off_gives_its_sound_part_where_the_run_goes_on(folder):
    path = folder / FIRST
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"s002.json")])
    with pytest.raises(InputError, match=r"shard-000000.index.jsonl: was made from another version"):
        ShardDataset(folder, kind="prompt")[0]
    dataset = ShardDataset(folder, kind="prompt", on_damage=pytest.fail)
    assert [dataset[n].answer for n in (0, 1, *range(4, 10))] == [0, 1, *range(4, 10)]
    for number in (2, 3):
        with pytest.raises(InputError, match=f"{FIRST}: lacks record {number + 1} of 4: it is cut off, or"):
            dataset[number]
        assert dataset.place(number) == (str(path), "")


def test_a_shard_that_was_exchanged_with_its_sidecar_is_noticed(folder, tmp_path):
    write(tmp_path / "other", range(20, 30))
    for name in (SECOND, index_path(folder / SECOND).name):
        shutil.copy(tmp_path / "other" / name, folder)
    dataset = ShardDataset(folder, kind="prompt")
    assert dataset[0].answer == 0
    with pytest.raises(
        InputError, match=r"shard-000001.index.jsonl: was made from another tar than .*`index`"
    ):
        dataset[4]


def test_a_shard_of_another_number_of_records_is_noticed(folder, tmp_path):
    write(tmp_path / "other", range(3))
    shutil.copy(tmp_path / "other" / FIRST, folder)
    index_path(folder / FIRST).unlink()
    with pytest.raises(InputError, match=rf"{FIRST}: holds 3 records, but 4 were counted; run `index`"):
        ShardDataset(folder, kind="prompt")[0]


def test_inspection_tells_what_is_missing(tmp_path, unlisted):
    folder = tmp_path / "texts"
    write_shards((sample(n) for n in range(10)), folder, kind="prompt", samples_per_shard=4)
    (folder / SECOND).unlink()
    dataset, damage = open_any(folder)
    found = inspect_records(dataset, range(len(dataset)))
    assert (found.samples, sum(found.modalities.values()), found.broken.total()) == (10, 6, 4)
    assert any(SECOND in example for example in found.examples.values())
    assert not damage


def test_a_manifest_of_the_first_version_is_read_as_it_was(folder):
    new = ShardDataset(folder, kind="prompt")
    manifest = Manifest.load(folder)
    (folder / manifest.table.file).unlink()
    save_version_1(manifest, folder)
    old = ShardDataset(folder, kind="prompt")
    assert answers(old) == answers(new) == list(range(10))
    assert old.counts.tolist() == new.counts.tolist()
    assert old.domains == new.domains
    assert list(old.shards) == list(new.shards)
    assert answers(pickle.loads(pickle.dumps(old))) == list(range(10))


def test_a_name_that_leads_out_of_the_folder_is_refused(folder, unlisted):
    manifest = Manifest.load(folder)
    save_version_1(manifest, folder)
    raw = json.loads((folder / MANIFEST).read_text())
    raw["shards"][0]["file"] = "../set/shard-000000.tar"
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"set: its manifest lists '../set/shard-000000.tar', which is no"):
        ShardDataset(folder, kind="prompt")[0]


@pytest.fixture
def mixed(folder, tmp_path):
    """Two folders, and between them two tars by name and one folder without a manifest: 30 prompts."""
    other, bare = write(tmp_path / "other", range(20, 30)), write(tmp_path / "bare", range(16, 20))
    for path in bare.glob("manifest*"):
        path.unlink()
    lone = write(tmp_path / "lone", range(10, 16))
    return [folder, lone / FIRST, str(lone / SECOND), bare, other]


def test_folders_and_tars_are_numbered_through(mixed):
    dataset = ShardDataset(mixed, kind="prompt")
    assert answers(dataset) == list(range(30))
    assert dataset.groups == [3, 1, 1, 1, 3]
    assert dataset.counts.tolist() == [4, 4, 2, 4, 2, 4, 4, 4, 2]
    assert dataset.bytes.tolist() == [path.stat().st_size for path in dataset.shards]
    assert [dataset.shards[n] for n in range(-9, 9)] == 2 * list(dataset.shards)
    assert [dataset.named(dataset.name(n)).answer for n in range(30)] == list(range(30))
    assert [dataset.shards.first(n) for n in range(9)] == [0, 4, 8, 10, 14, 16, 20, 24, 28]
    assert dataset.shards.ends.tolist() == np.cumsum(dataset.counts).tolist()
    assert dataset.remote_bytes.tolist() == [0] * 9
    assert answers(pickle.loads(pickle.dumps(dataset))) == list(range(30))
    for name in (f"{mixed[0]}/shard-000009.tar:s000", "elsewhere.tar:s000", f"{mixed[0]}/{FIRST}:s009"):
        with pytest.raises(KeyError):
            dataset.named(name)


def test_a_selection_counts_by_shard(mixed):
    kept = np.array([0, 9, 10, 13, 14, 29])
    chosen = Selection(ShardDataset(mixed, kind="prompt"), kept)
    assert chosen.counts.tolist() == [1, 0, 1, 2, 1, 0, 0, 0, 1]
    assert [chosen.record(n).answer for n in range(6)] == kept.tolist()
