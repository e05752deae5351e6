# SPDX-License-Identifier: Apache-2.0
"""Writing: the same samples give the same bytes, stock readers read them, and no folder is half written."""

import gc
import hashlib
import json
import tarfile

import pytest
import webdataset

from ixc_lightning.datamodules import shard_writer
from ixc_lightning.datamodules.shard_writer import Manifest, Sample, new_folder, write_shards
from ixc_lightning.types import InputError


def sample(number, media=None, **changes):
    media = {"00.jpg": b"jpeg", "01.mp4": b"video"} if media is None else media
    content = [{"type": "video" if name.endswith("mp4") else "image", "file": name} for name in media]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Größe?"}]}]
    record = {"source": "test", "id": str(number), "domain": "reading", "messages": messages}
    return Sample(f"s{number}", record | changes, media)


def test_members_are_the_json_then_the_media_with_fixed_headers(tmp_path):
    write_shards([sample(1), sample(2, {})], tmp_path / "set", kind="prompt")
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        members = tar.getmembers()
        data = tar.extractfile("s1.json").read()
    assert [member.name for member in members] == ["s1.json", "s1.00.jpg", "s1.01.mp4", "s2.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert list(json.loads(data)) == ["domain", "id", "messages", "source"]
    assert "Größe" in data.decode()


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shards([sample(1), sample(2)], tmp_path / name, kind="prompt")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    table, *rest = files
    assert rest == ["manifest.json", "shard-000000.index.jsonl", "shard-000000.tar"]
    assert table == Manifest.load(tmp_path / "a").table.file
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_manifest_says_what_the_folder_holds(tmp_path):
    samples = [sample(1), sample(2, {}), sample(3, {"00.png": b"x"}, domain="arithmetic")]
    manifest = write_shards(samples, tmp_path / "set", kind="prompt", samples_per_shard=2)
    assert manifest == Manifest.load(tmp_path / "set")
    assert (manifest.kind, manifest.samples) == ("prompt", 3)
    assert manifest.modalities == {"image": 1, "text": 1, "video": 1}
    assert manifest.domains == {"arithmetic": 1, "reading": 2}
    assert [(shard.file, shard.samples) for shard in manifest.shards] == [
        ("shard-000000.tar", 2),
        ("shard-000001.tar", 1),
    ]
    data = (tmp_path / "set" / "shard-000000.tar").read_bytes()
    assert manifest.shards[0].bytes == len(data)
    assert manifest.shards[0].sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset 1.0 leaves the tars open
def test_stock_webdataset_reads_them_back(tmp_path):
    write_shards([sample(1), sample(2, {}), sample(3)], tmp_path / "set", kind="prompt", samples_per_shard=2)
    shards = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    gc.collect()
    assert [item["__key__"] for item in found] == ["s1", "s2", "s3"]
    assert (found[0]["00.jpg"], found[0]["01.mp4"]) == (b"jpeg", b"video")
    assert json.loads(found[2]["json"])["id"] == "3"


def test_a_shard_is_closed_at_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "MAX_SHARD_BYTES", 2000)
    big = {"00.jpg": bytes(1200)}
    manifest = write_shards([sample(n, big) for n in range(5)], tmp_path / "set", kind="prompt")
    assert [shard.samples for shard in manifest.shards] == [2, 2, 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(1)._replace(key="a.b"), r"set, sample 'a.b': a key has no dots"),
        (sample(1)._replace(key="../a"), r"sample '../a': a key has no dots"),
        (sample(1)._replace(key="__a__"), r"leading '__'"),
        (sample(1)._replace(key=""), r"sample '': a key"),
        (sample(0), r"set, sample 's0': the key comes twice"),
        (sample(1, {"A.jpg": b""}), r"sample 's1', 'A.jpg': a file name has lower-case letters"),
        (sample(1, {"_a.jpg": b""}), r"sample 's1', '_a.jpg': a file name has"),
        (sample(1, {"json": b""}), r"sample 's1', 'json': a file name has"),
        (sample(1, chosn="x"), r"set, sample 's1', chosn: unknown field"),
        (sample(1, domain="\ud800"), r"set, sample 's1', json: not UTF-8"),
    ],
)
def test_a_bad_sample_is_named_and_leaves_nothing_behind(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        write_shards([sample(0), bad], tmp_path / "set", kind="prompt")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_only_when_it_is_complete(tmp_path):
    seen = []

    def watched():
        for number in range(3):
            seen.append((tmp_path / "set").exists())
            yield sample(number)

    write_shards(watched(), tmp_path / "set", kind="prompt", samples_per_shard=1)
    assert seen == [False] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_folder_with_content_is_never_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="set: exists and is not empty; name a new folder"):
        write_shards([sample(1)], tmp_path / "set", kind="prompt")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["thesis.txt"]
    with (
        pytest.raises(InputError, match="exists and is not empty"),
        new_folder(tmp_path / "set" / "thesis.txt"),
    ):
        pass


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert write_shards([sample(1)], tmp_path / "set", kind="prompt").samples == 1


def test_a_shard_of_no_samples_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="samples_per_shard must be positive"):
        write_shards([sample(1)], tmp_path / "set", kind="prompt", samples_per_shard=0)
