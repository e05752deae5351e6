# SPDX-License-Identifier: Apache-2.0
"""Requests to an address: the driver, the retries, and nothing secret in a message."""

import sys

import pytest

from ixc_lightning.datamodules import remote
from ixc_lightning.datamodules.remote import (
    AccessInputError,
    MissingInputError,
    StoreInputError,
    is_remote,
    join_url,
    read_remote,
    retry,
    shown,
    split_url,
)
from tests.datamodules.web import serve

SECRET = "signature"


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    with serve() as web:
        yield web


@pytest.mark.parametrize(
    ("shards", "expected"),
    [("s3://b/a.tar", True), ("hf://datasets/a/b", True), ("data/a.tar", False), ("~/a", False)],
)
def test_an_address_is_told_from_a_path(shards, expected):
    assert is_remote(shards) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/a.tar?X-Sig=b%2Fc&d=e", "https://h/a.tar?…"),
        ("https://user:word@h:1/a.tar", "https://…@h:1/a.tar"),
        ("404, url='http://h/a.tar?sig=1', again", "404, url='http://h/a.tar?…', again"),
        ("s3://b/shard-0?.tar", "s3://b/shard-0?.tar"),  # a pattern
        ("hf://datasets/a/b@main/c.tar", "hf://datasets/a/b@main/c.tar"),
        ("data/a.tar", "data/a.tar"),
    ],
)
def test_what_is_shown_of_an_address_holds_no_secret(url, expected):
    assert shown(url) == expected


@pytest.mark.parametrize(
    ("folder", "url"),
    [
        ("https://h/set/?key=1", "https://h/set/a.tar?key=1"),
        ("https://h/set", "https://h/set/a.tar"),
        ("s3://b/set", "s3://b/set/a.tar"),
        ("hf://datasets/a/b@main", "hf://datasets/a/b@main/a.tar"),
    ],
)
def test_files_of_a_folder_have_its_query(folder, url):
    assert join_url(folder, "a.tar") == url
    assert split_url(url) == (folder.replace("/?", "?"), "a.tar")


def test_a_file_that_need_not_be_there_is_none(web):
    web.files["b.json"] = b"{}"
    web.failures["c.json"].append(403)
    assert read_remote(f"{web.url}/a.json") is None
    assert read_remote(f"{web.url}/b.json") == b"{}"
    assert read_remote(f"{web.url}/c.json") is None


@pytest.mark.parametrize(
    ("failures", "kind"),
    [
        ([404], MissingInputError),
        ([403], AccessInputError),
        ([400], StoreInputError),
        ([503] * 5, StoreInputError),
        (["dropped"] * 9, StoreInputError),
    ],
)
def test_no_message_holds_the_query(failures, kind, web):
    name = f"a.tar?key={SECRET}"
    web.failures[name].extend(failures)
    with pytest.raises(kind, match=rf"{web.url}/a.tar\?…: ") as raised:
        retry(f"{web.url}/{name}", lambda files, path: files.cat_file(path), attempts=2)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("gs://bucket/*.tar", "gcsfs", "gcsfs"),
        ("abfs://bucket/*.tar", "adlfs", "adlfs"),
        ("sftp://host/*.tar", "paramiko", r"\"fsspec\[sftp\]\""),
    ],
)
def test_a_driver_that_is_missing_is_named_with_its_package(url, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StoreInputError, match=f"no driver for .* is installed .*pip install {package}"):
        read_remote(url)
