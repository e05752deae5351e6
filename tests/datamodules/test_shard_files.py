# SPDX-License-Identifier: Apache-2.0
"""Shards at an address are read through the cache, and every message names the address."""

import multiprocessing
import pickle

import numpy as np
import pytest

from ixc_lightning.datamodules import remote
from ixc_lightning.datamodules.cache import ShardCache
from ixc_lightning.datamodules.index import index_path
from ixc_lightning.datamodules.shard_writer import write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError
from tests.datamodules.test_shards import answers, keys_in_worker, sample
from tests.datamodules.web import serve

TARS = [f"set/shard-{number:06d}.tar" for number in range(3)]
SIDECARS = [name.replace(".tar", ".index.jsonl") for name in TARS]


@pytest.fixture
def folder(tmp_path):
    """Three shards of prompts: 0 to 3, 4 to 7, 8 and 9, with 0, 1 or 2 pictures."""
    write_shards(
        (sample(n, images=n % 3) for n in range(10)), tmp_path / "set", kind="prompt", samples_per_shard=4
    )
    return tmp_path / "set"


@pytest.fixture
def web(folder, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    with serve() as web:
        web.put(folder, "set")
        yield web


@pytest.fixture
def open_set(web, tmp_path):
    """Opens what a URL names, its root for short; with as much room as the test says."""

    def open_set(*names, max_bytes=10**9, **options):
        shards = [f"{web.url}/{name}" for name in names or ("set",)]
        return ShardDataset(shards, kind="prompt", cache=ShardCache(tmp_path / "cache", max_bytes), **options)

    return open_set


def test_records_are_those_of_the_disk_but_for_the_address(web, folder, open_set):
    here, there = ShardDataset(folder, kind="prompt"), open_set()
    assert [record.media for record in map(there.record, range(10))] == [
        record.media for record in map(here.record, range(10))
    ]
    assert [there.name(n) for n in range(10)] == [
        here.name(n).replace(str(folder), f"{web.url}/set") for n in range(10)
    ]
    assert there[4].shard == f"{web.url}/{TARS[1]}"
    assert there.named(there.name(4)) == there[4]
    assert there.domains == here.domains
    numbers = np.arange(10)
    assert there.costs(numbers).tolist() == here.costs(numbers).tolist()


def test_nothing_but_the_manifest_is_asked_for_until_a_record_is_read(web, open_set):
    manifest = {"set/manifest.json": 1, table_in(web): 1}
    dataset = open_set()
    assert (len(dataset), dataset.domains) == (10, ["arithmetic", "reading"])
    assert web.gets == manifest
    dataset.place(5)
    assert web.gets == manifest | {SIDECARS[1]: 1}
    assert dataset[5].answer == 5
    assert web.gets == manifest | {SIDECARS[1]: 1, TARS[1]: 1}
    assert answers(open_set()) == list(range(10))
    assert web.gets[table_in(web)] == 1  # it was in the cache


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: None, "no such file"),
        (lambda data: data[:-1], "its SHA-256 is"),
        (lambda data: data.replace(b"shard-000001", b"shard-000009"), "its SHA-256 is"),
    ],
)
def test_a_table_that_is_not_the_manifests_is_named(harm, message, web, open_set):
    table = table_in(web)
    web.files[table] = harm(web.files[table])
    with pytest.raises(InputError, match=f"{web.url}/{table}: {message}"):
        open_set()


def test_a_table_that_is_in_use_stays_in_the_cache(web, open_set):
    """A process that is spawned opens it by its path."""
    table = web.files[table_in(web)]
    dataset = open_set(max_bytes=len(table) + max(len(web.files[name]) for name in TARS))
    assert answers(dataset) == list(range(10))  # each tar needs the room
    assert answers(pickle.loads(pickle.dumps(dataset))) == list(range(10))


def table_in(web):
    (table,) = (name for name in web.files if name.endswith(".safetensors"))
    return table


def test_without_a_manifest_the_sidecars_are_asked(web, open_set):
    del web.files["set/manifest.json"]
    dataset = open_set(*TARS)
    assert not set(TARS) & set(web.gets)
    assert answers(dataset) == list(range(10))


def test_the_sidecar_checks_the_tar_too(web, open_set):
    del web.files["set/manifest.json"]
    web.files[TARS[0]] = web.files[TARS[0]].replace(b"Which is 1?", b"Which is 7?")
    with pytest.raises(InputError, match=f"{TARS[0]}: its SHA-256 is"):
        answers(open_set(*TARS))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_without_sidecars_the_tars_are_scanned(has_manifest, web, open_set):
    for name in SIDECARS:
        del web.files[name]
    if not has_manifest:
        del web.files["set/manifest.json"]
    dataset = open_set(*TARS)
    assert set(TARS).isdisjoint(web.gets) == has_manifest
    assert answers(dataset) == list(range(10))


def test_a_sidecar_that_was_fetched_before_the_shard_changed_is_fetched_anew(web, open_set, tmp_path):
    assert answers(open_set()) == list(range(10))
    write_shards((sample(n) for n in range(20, 30)), tmp_path / "new", kind="prompt", samples_per_shard=4)
    web.put(tmp_path / "new", "set")
    assert answers(open_set()) == list(range(20, 30))


def test_a_sidecar_of_another_tar_is_named(web, open_set):
    web.files[SIDECARS[0]] = web.files[SIDECARS[1]]
    with pytest.raises(InputError, match=f"{web.url}/{SIDECARS[0]}: was made from another tar than"):
        open_set()[0]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ({SIDECARS[0]: b"junk"}, rf"{SIDECARS[0]}: is not an index of version"),
        ({TARS[0]: b"no tar" * 999, SIDECARS[0]: None}, rf"{TARS[0]}: is not an uncompressed tar"),
        ({"set/manifest.json": b"[]"}, "set/manifest.json: is not a manifest"),
    ],
)
def test_a_broken_file_is_named_by_its_address(harm, message, web, open_set, tmp_path):
    if "set/manifest.json" not in harm:
        del web.files["set/manifest.json"]
    for name, data in harm.items():
        web.files[name] = data
    with pytest.raises(InputError, match=f"{web.url}/{message}") as raised:
        open_set(TARS[0])[0]
    assert str(tmp_path) not in str(raised.value)


def test_the_sound_part_of_a_damaged_shard_is_read(web, open_set, tmp_path):
    damage = []
    del web.files["set/manifest.json"], web.files[SIDECARS[0]]
    data = web.files[TARS[0]]
    web.files[TARS[0]] = data[: data.index(b"s002.json")]
    dataset = open_set(*TARS, on_damage=damage.append)
    assert answers(dataset) == [0, 1, 4, 5, 6, 7, 8, 9]
    (bad,) = damage
    assert bad.shard == f"{web.url}/{TARS[0]}"
    assert bad.reason.startswith(f"{web.url}/{TARS[0]}: is cut off")


def test_one_shard_at_a_time_is_enough_room(web, open_set, folder):
    size = max(path.stat().st_size + index_path(path).stat().st_size for path in folder.glob("*.tar"))
    dataset = open_set(max_bytes=size)
    assert answers(dataset) + answers(dataset) == list(range(10)) * 2
    assert web.gets[TARS[0]] == 2


def test_what_is_fetched_ahead_leaves_half_of_the_cache(web, open_set, folder):
    size = (folder / "shard-000000.tar").stat().st_size
    dataset = open_set(max_bytes=4 * size + 4000)
    wished = []
    dataset._remote.cache.prefetch = wished.extend
    dataset.prefetch(np.array([9, 8, 4, 5, 0]))
    assert wished == [f"{web.url}/{TARS[2]}", f"{web.url}/{TARS[1]}"]


def test_a_pickled_copy_reads_the_same_and_carries_no_open_file(open_set):
    dataset = open_set()
    assert dataset[0].answer == 0
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._remote._streams
    assert answers(copy) == list(range(10))


@pytest.mark.slow
def test_it_travels_to_spawned_workers(open_set):
    dataset = open_set()
    assert dataset[0].answer == 0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(keys_in_worker, (dataset,)).get(60) == [f"s{n:03d}" for n in range(10)]
