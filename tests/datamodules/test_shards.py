# SPDX-License-Identifier: Apache-2.0
"""Reading: every record by its number, whatever its index; a broken shard gives one error that names it."""

import io
import json
import multiprocessing
import pickle
import shutil
import tarfile

import pytest
from torch.utils.data import DataLoader

from ixc_lightning.datamodules.index import index_path
from ixc_lightning.datamodules.shard_files import LocalFiles
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError

DOMAINS = ("reading", "arithmetic")


def sample(number, images=0):
    files = {f"{place:02d}.jpg": bytes([number, place]) * (number + 1) for place in range(images)}
    content = [
        *({"type": "image", "file": name} for name in files),
        {"type": "text", "text": f"Which is {number}?"},
    ]
    record = {
        "id": str(number),
        "source": "test",
        "domain": DOMAINS[number % 2],
        "messages": [{"role": "user", "content": content}],
        "answer": number,
    }
    return Sample(f"s{number:03d}", record, files)


@pytest.fixture
def folder(tmp_path):
    """Three shards of prompts: 0 to 3, 4 to 7, 8 and 9, with 0, 1 or 2 pictures."""
    write_shards(
        (sample(n, images=n % 3) for n in range(10)), tmp_path / "set", kind="prompt", samples_per_shard=4
    )
    return tmp_path / "set"


def answers(dataset):
    return [dataset[index].answer for index in range(len(dataset))]


def test_records_come_back_in_order_with_their_media(folder):
    dataset = ShardDataset(folder, kind="prompt")
    assert answers(dataset) == list(range(10))
    assert dataset[5].media == {"00.jpg": bytes([5, 0]) * 6, "01.jpg": bytes([5, 1]) * 6}
    assert dataset[-1] == dataset[9]
    assert (dataset[4].key, dataset[4].shard) == ("s004", str(folder / "shard-000001.tar"))


def test_domain_and_modality_are_known_without_reading(folder):
    dataset = ShardDataset(folder, kind="prompt")
    assert dataset.domains == ["arithmetic", "reading"]
    assert [dataset.domain(index) for index in range(10)] == list(DOMAINS) * 5
    assert [dataset.modality(index) for index in range(3)] == ["text", "image", "multi_image"]
    assert (dataset.domain(0), dataset.name(0)) == ("reading", f"{folder}/shard-000000.tar:s000")


def test_a_record_can_be_read_without_its_media(folder):
    dataset = ShardDataset(folder, kind="prompt")
    assert dataset.record(5, media=False).media == {}
    assert dataset.record(5, media=False).messages == dataset[5].messages


def test_a_scan_finds_what_the_sidecar_says(folder):
    with_sidecar = ShardDataset(folder, kind="prompt")
    for path in with_sidecar.shards:
        index_path(path).unlink()
    scanned = ShardDataset(folder, kind="prompt")
    assert [scanned.place(index) for index in range(10)] == [with_sidecar.place(index) for index in range(10)]
    assert answers(scanned) == list(range(10))


def test_a_tar_made_with_tar_is_read(tmp_path):
    """Members in a folder, upper case, other files beside them, long names, and media before the JSON."""
    long = "k" * 120
    members = {
        "./set/s001.00.JPG": b"one",
        f"set/{long}.json": json.dumps(sample(2).record).encode(),
        "./set/s001.json": json.dumps(sample(1, images=1).record).encode(),
        "set/README": b"no member",
        "__meta__/x.json": b"no member",
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    dataset = ShardDataset(tmp_path / "a.tar", kind="prompt")
    assert answers(dataset) == [1, 2]
    assert dataset[0].media == {"00.jpg": b"one"}


@pytest.mark.parametrize(
    "pattern", ["set", "set/*.tar", "set/shard-{000000..000002}.tar", "set/shard-00000?.tar"]
)
def test_a_folder_a_glob_and_braces_name_the_same_shards(folder, pattern):
    assert answers(ShardDataset(str(folder.parent / pattern), kind="prompt")) == list(range(10))


@pytest.mark.parametrize("pattern", ["set", "set/*.tar", "set/shard-{000000..000002}.tar"])
def test_a_tilde_is_the_home_directory(pattern, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    dataset = ShardDataset(f"~/{pattern}", kind="prompt")
    assert answers(dataset) == list(range(10))
    assert dataset.shards[0] == folder / "shard-000000.tar"


def test_a_list_keeps_its_order(folder):
    paths = [folder / "shard-000002.tar", str(folder / "shard-000000.tar")]
    assert answers(ShardDataset(paths, kind="prompt")) == [8, 9, 0, 1, 2, 3]


def keys_in_worker(dataset):
    return [dataset[index].key for index in range(len(dataset))]


def test_a_pickled_copy_reads_the_same_and_carries_no_open_file(folder):
    dataset = ShardDataset(folder, kind="prompt")
    assert dataset[0].answer == 0
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._local._streams
    assert answers(copy) == list(range(10))


@pytest.mark.slow
def test_it_travels_to_spawned_workers(folder):
    dataset = ShardDataset(folder, kind="prompt")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(keys_in_worker, (dataset,)) == [f"s{n:03d}" for n in range(10)]


def test_forked_loader_workers_read_what_one_process_reads(folder):
    dataset = ShardDataset(folder, kind="prompt")
    assert dataset[0].answer == 0  # a file is open before the fork
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [record.answer for record in loader] == list(range(10))


def test_more_shards_than_files_may_be_open(tmp_path):
    count = LocalFiles.max_open + 3
    write_shards((sample(n) for n in range(count)), tmp_path / "set", kind="prompt", samples_per_shard=1)
    dataset = ShardDataset(tmp_path / "set", kind="prompt")
    assert answers(dataset) + answers(dataset) == list(range(count)) * 2
    assert len(dataset._local._streams) == LocalFiles.max_open


def test_an_index_beyond_the_end_is_an_index_error(folder):
    dataset = ShardDataset(folder, kind="prompt")
    for index in (10, -11):
        with pytest.raises(IndexError, match=f"record {index} of 10"):
            dataset[index]


def test_one_bad_record_spoils_only_itself(folder):
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"domain": "arithmetic"', b'"domain": "arithmetic!'))
    index_path(path).unlink()
    dataset = ShardDataset(folder, kind="prompt")
    with pytest.raises(InputError, match=r"shard-000000.tar, sample 's001', json: not valid JSON"):
        dataset[1]
    assert (dataset.domain(1), dataset.domains) == ("", ["arithmetic", "reading"])
    assert dataset[2].answer == 2


def broken(kind, folder):
    """Break the folder of shards, and return what to open and what the message must say."""
    first = folder / "shard-000000.tar"
    data = first.read_bytes()
    sidecar = index_path(first)
    match kind:
        case "wrong path":
            return folder / "shard-9.tar", r"shard-9.tar: no such shard; name a folder"
        case "empty glob":
            return str(folder / "train-*.tar"), r"train-\*.tar: no such shard; name a folder"
        case "brace":
            return str(folder / "shard-{000002..000003}.tar"), r"shard-000003.tar: no such shard \(from .*{"
        case "empty folder":
            return folder.parent, r"the folder holds no .tar"
        case "empty list":
            return [], r"the list is empty"
        case "twice":
            return [folder, first], r"shard-000000.tar: is named twice"
        case "incomplete":
            first.unlink()
            return folder, r"shard-000000.tar: is in the manifest, but not in the folder; copy"
        case "no tar":
            first.write_bytes(b"not a tar" * 1000)
            sidecar.unlink()
            return folder, r"shard-000000.tar: is not an uncompressed tar, or is cut off .*gunzip"
        case "empty file":
            first.write_bytes(b"")
            sidecar.unlink()
            return folder, r"shard-000000.tar: is not an uncompressed tar, or is cut off"
        case "gzip":
            with tarfile.open(first, "w:gz"):
                pass
            sidecar.unlink()
            return folder, r"shard-000000.tar: is not an uncompressed tar, or is cut off .*gunzip"
        case "cut in data":
            first.write_bytes(data[: 512 + 100])
            sidecar.unlink()
            return folder, r"shard-000000.tar: is not an uncompressed tar, or is cut off \(unexpected end"
        case "cut between members":
            first.write_bytes(data[: data.index(b"s002.json")])
            sidecar.unlink()
            return folder, r"shard-000000.tar: is cut off, the end mark is missing; copy"
        case "cut in a header":
            first.write_bytes(data[: data.index(b"s002.json") + 300])
            sidecar.unlink()
            return folder, r"shard-000000.tar: is cut off, the end mark is missing; copy"
        case "damaged header":
            first.write_bytes(data.replace(b"s002.json", b"s\xff\xff\xff.json", 1))
            sidecar.unlink()
            return folder, r"shard-000000.tar: is damaged at byte \d+, or is two tars joined with cat"
        case "joined with cat":
            first.write_bytes(data * 2)
            sidecar.unlink()
            return folder, r"shard-000000.tar: is damaged at byte \d+, or is two tars joined with cat"
        case "member twice":
            with tarfile.open(first, "a") as tar:
                tar.addfile(tarfile.TarInfo("s000.json"))
            sidecar.unlink()
            return folder, r"shard-000000.tar: member s000.json comes twice; give every sample a key"
        case "no samples":
            with tarfile.open(folder.parent / "a.tar", "w"):
                pass
            return folder.parent / "a.tar", r"a.tar: the shards hold no samples"
        case "index of another size":
            first.write_bytes(data + bytes(10240))
            return (
                folder,
                r"shard-000000.index.jsonl: was made from another version of shard-000000.tar; delete",
            )
        case "index is junk":
            sidecar.write_bytes(b"{}\n[1]\n")
            return folder, r"shard-000000.index.jsonl: is not an index .*delete it"
        case "index is empty":
            sidecar.write_bytes(b"")
            return folder, r"shard-000000.index.jsonl: is not an index .*delete it"
        case "manifest is junk":
            (folder / "manifest.json").write_text("[]")
            return folder, r"manifest.json: is not a manifest"
    raise ValueError(kind)


BROKEN = [
    *("wrong path", "empty glob", "brace", "empty folder", "empty list", "twice", "incomplete"),
    *(
        "no tar",
        "empty file",
        "gzip",
        "cut in data",
        "cut between members",
        "cut in a header",
        "damaged header",
    ),
    *("joined with cat", "member twice", "no samples"),
    *("index of another size", "index is junk", "index is empty", "manifest is junk"),
]


@pytest.mark.parametrize("kind", BROKEN)
def test_each_broken_set_has_a_message_that_names_it(kind, folder):
    shards, message = broken(kind, folder)
    with pytest.raises(InputError, match=message):
        ShardDataset(shards, kind="prompt")[0]


def test_another_kind_of_record_is_refused_by_the_manifest(folder):
    with pytest.raises(InputError, match="set: holds prompt records, but is read as preference data"):
        ShardDataset(folder, kind="preference")


def test_a_sample_without_json_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("s1.00.jpg"))
    with pytest.raises(InputError, match=r"a.tar, sample 's1', json: is missing; add a member s1.json"):
        ShardDataset(tmp_path / "a.tar", kind="prompt")[0]


def test_a_shard_replaced_by_one_of_the_same_size_is_noticed(folder, tmp_path):
    """Members moved by a block, in a file whose padded size is the same."""
    samples = [sample(n, images=n % 3) for n in range(4)]
    samples[0] = Sample("s000", samples[0].record | {"source": "x" * 600})
    write_shards(samples, tmp_path / "other", kind="prompt")
    other = tmp_path / "other" / "shard-000000.tar"
    assert other.stat().st_size == (folder / "shard-000000.tar").stat().st_size
    shutil.copy(other, folder / "shard-000000.tar")
    with pytest.raises(InputError, match=r"shard-000000.tar: member s001.00.jpg is not where the index says"):
        ShardDataset(folder, kind="prompt")[1]


def test_a_shard_that_is_gone_or_cut_after_opening_is_named(folder):
    dataset = ShardDataset(folder, kind="prompt")
    path = folder / "shard-000000.tar"
    path.rename(folder / "moved.tar")
    with pytest.raises(InputError, match=r"shard-000000.tar: cannot be read \(No such file or directory\)"):
        dataset[0]
    path.write_bytes((folder / "moved.tar").read_bytes()[:600])
    with pytest.raises(InputError, match=r"shard-000000.index.jsonl: was made from another version"):
        dataset[0]


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    """Stock readers unpickle members such as ``pyd``; here they are media that no message names."""
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("something was unpickled"))
    data = json.dumps(sample(1).record).encode()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, body in {"s1.json": data, "s1.pyd": pickle.dumps({})}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    with pytest.raises(InputError, match="pyd: is in the tar, but no message names it"):
        ShardDataset(tmp_path / "a.tar", kind="prompt")[0]
