# SPDX-License-Identifier: Apache-2.0
"""What lies at an address is named like what lies on a disk, and what is not there is named with a fix."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ixc_lightning.datamodules import patterns, remote
from ixc_lightning.datamodules.folders import REPORT, Folders
from ixc_lightning.datamodules.patterns import expand_shards
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.datamodules.sources import _converting
from ixc_lightning.types import InputError
from tests.datamodules.test_shards import sample
from tests.datamodules.web import serve


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Where tables of manifests at an address are kept, if nothing else is said."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    with serve() as web:
        yield web


@pytest.fixture
def upload(web, tmp_path):
    """Writes three small shards, and gives them to the server below ``name``, with or without a manifest."""

    def upload(name, manifest):
        folder = tmp_path / name
        write_shards((sample(n) for n in range(6)), folder, kind="prompt", samples_per_shard=2)
        web.put(folder, name)
        if not manifest:
            del web.files[f"{name}/manifest.json"]
        return f"{web.url}/{name}"

    return upload


@pytest.fixture
def converted(tmp_path):
    """What a converter writes: prompts in two folders, and pairs in a third one, two levels down."""
    folder = tmp_path / "set"
    write_shards([sample(0)], folder / "text", kind="prompt")
    write_shards([sample(1, images=1)], folder / "image-jpg", kind="prompt")
    record = {name: value for name, value in sample(2).record.items() if name != "answer"}
    pair = Sample("s2", record | {"chosen": "2", "rejected": "3"})
    write_shards([pair], folder / "rated/text", kind="preference")
    report = {"folders": {"text": 1, "image-jpg": 1, "rated/text": 1}}
    (folder / REPORT).write_text(json.dumps(report))
    return folder


def expand(shards, kind=None):
    return [shard for group in expand_shards(shards, kind=kind) for shard in group]


def numbered(url, numbers):
    return [f"{url}/shard-{number:06d}.tar" for number in numbers]


def test_a_brace_pattern_becomes_addresses_that_nobody_asks_for(web):
    url = f"{web.url}/set"
    assert expand(url + "/shard-{000000..000002}.tar") == numbered(url, range(3))
    assert not web.gets


def test_a_folder_with_a_manifest_holds_what_it_lists(web, upload):
    url = upload("set", manifest=True)
    web.files["set/other.tar"] = b""
    assert expand(url) == expand(url + "/") == numbered(url, range(3))
    (table,) = (name for name in web.files if name.endswith(".safetensors"))
    assert web.gets == {"set/manifest.json": 2, table: 1}


def test_a_folder_without_one_is_listed(upload):
    url = upload("set", manifest=False)
    assert expand(url) == numbered(url, range(3))


def test_a_glob_pattern_is_matched_against_the_listing(upload):
    url = upload("set", manifest=True)
    assert expand(url + "/shard-00000[12].tar") == numbered(url, [1, 2])
    assert expand(url + "/*") == numbered(url, range(3))


def test_several_folders_may_be_named_with_braces(upload, tmp_path):
    first, second = upload("one", manifest=True), upload("two", manifest=False)
    expected = numbered(first, range(3)) + numbered(second, range(3))
    assert expand(first.replace("one", "{one,two}")) == expected
    assert list(map(str, expand(f"{tmp_path}/{{one,two}}"))) == [
        shard.replace(str(first.rpartition("/")[0]), str(tmp_path)) for shard in expected
    ]


def test_each_thing_that_is_named_has_its_own_shards(upload, tmp_path):
    url = upload("set", manifest=True)
    found = expand_shards([url, f"{tmp_path}/set/shard-000001.tar"])
    assert found == [numbered(url, range(3)), [tmp_path / "set/shard-000001.tar"]]


def test_a_question_mark_in_a_web_address_is_its_query(web):
    url = f"{web.url}/a.tar?token=[x]*"
    assert expand(url) == [url]


def test_the_signature_of_a_folder_is_that_of_its_files(web, upload):
    url = upload("set", manifest=True)
    for name in [name for name in web.files if name.startswith("set/manifest")]:
        web.files[f"{name}?key=1"] = web.files.pop(name)
    assert expand(f"{url}?key=1") == [f"{shard}?key=1" for shard in numbered(url, range(3))]


def test_addresses_that_look_the_same_without_their_queries_are_refused(web):
    with pytest.raises(InputError, match=r"a.tar\?…: is named twice"):
        expand([f"{web.url}/a.tar?key=1", f"{web.url}/a.tar?key=2"])


def test_a_folder_of_another_kind_is_refused(upload):
    url = upload("set", manifest=True)
    with pytest.raises(InputError, match=f"{url}: holds prompt records, but is read as preference data"):
        expand(url, Kind.PREFERENCE)


def test_a_manifest_that_is_none_is_named_by_its_address(web, upload):
    url = upload("set", manifest=True)
    web.files["set/manifest.json"] = json.dumps({"shards": []}).encode()
    with pytest.raises(InputError, match=f"{url}/manifest.json: is not a manifest"):
        expand(url)


def test_a_listing_is_asked_for_again_while_the_server_fails(web, upload):
    url = upload("set", manifest=True)
    web.failures["set/manifest.json"].extend([503, 503])
    assert expand(url) == numbered(url, range(3))


def test_what_a_converter_wrote_stands_for_its_folders_of_the_kind(converted, web):
    web.put(converted, "set")
    for folder in (converted, f"{web.url}/set"):
        prompts = [f"{folder}/{name}/shard-000000.tar" for name in ("image-jpg", "text")]
        pairs = [f"{folder}/rated/text/shard-000000.tar"]
        assert list(map(str, expand(folder, Kind.PROMPT))) == prompts
        assert list(map(str, expand(folder, Kind.PREFERENCE))) == pairs
        assert list(map(str, expand(folder))) == [prompts[0], *pairs, prompts[1]]
    assert not [name for name in web.gets if name.endswith("/")]  # nothing is listed


def test_what_a_converter_wrote_of_other_kinds_alone_is_refused(converted):
    with pytest.raises(InputError, match="holds preference and prompt records, but is read as instruction"):
        expand(converted, Kind.INSTRUCTION)


def test_what_a_converter_wrote_must_be_whole(converted):
    shutil.rmtree(converted / "text")
    with pytest.raises(InputError, match=r"text/manifest.json: is missing, but conversion.json names"):
        expand(converted, Kind.PROMPT)


@pytest.mark.parametrize("report", ["[]", '{"folders": {"../other": 1}}', "no json", '{"folders": [1]}'])
def test_a_report_that_is_none_is_named(report, converted):
    (converted / REPORT).write_text(report)
    with pytest.raises(InputError, match=r"conversion.json: is not the report of a converter"):
        expand(converted)


def test_the_report_is_the_converters(tmp_path):
    assert REPORT == _converting.REPORT
    report = _converting.Report("a", "b", "c", "d", folders={"text": 1})
    report.save(tmp_path)
    assert Folders().parts(tmp_path) == [tmp_path / "text"]


def test_folders_that_no_converter_wrote_are_not_searched(converted):
    """One of them may hold what must not be trained on."""
    (converted / REPORT).unlink()
    with pytest.raises(InputError, match=r"set: the folder holds no .tar; name the folder whose shards"):
        expand(converted)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{url}/empty/", "empty/: the folder holds no .tar; check the address"),
        ("{url}/empty/*.tar", "no shard matches"),
        ("{url}/{{a..b", "no brace pattern"),
        ("nosuch://bucket/a", "nosuch:// is not known .*; use s3://, gs://, hf://, https:// or a path"),
    ],
)
def test_what_cannot_be_listed_is_named(pattern, message, web):
    web.files["empty/readme.md"] = b""
    with pytest.raises(InputError, match=message):
        expand(pattern.format(url=web.url))


@pytest.fixture
def written(tmp_path):
    """A folder of three shards with their manifest."""
    write_shards((sample(n) for n in range(6)), tmp_path / "set", kind="prompt", samples_per_shard=2)
    return tmp_path / "set"


def test_a_folder_that_is_not_that_of_its_manifest_is_refused(written):
    (written / "shard-000001.tar").rename(written / "zzz.tar")
    with pytest.raises(InputError, match=r"shard-000001.tar: is in the manifest, but not in the fold"):
        expand(written)
    shutil.copy(written / "zzz.tar", written / "shard-000001.tar")
    with pytest.raises(InputError, match=r"zzz.tar: is in the folder, but not in the manifest; run `index`"):
        expand(written)


def test_a_large_folder_is_not_listed(written, monkeypatch):
    monkeypatch.setattr(patterns, "MAX_LISTED", 2)
    (written / "shard-000001.tar").unlink()
    expected = [written / f"shard-{number:06d}.tar" for number in range(3)]
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("it was listed"))
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("it was listed"))
    assert expand(written) == expected


@pytest.mark.parametrize("named", [["set", "set"], ["set", "set/shard-000001.tar"], ["{set,set}"]])
def test_a_shard_of_a_folder_that_is_named_again_is_refused(named, written):
    with pytest.raises(InputError, match=r"shard-00000[01].tar: is named twice"):
        expand([f"{written.parent}/{name}" for name in named])
