# SPDX-License-Identifier: Apache-2.0
"""A folder reaches the hub in one commit, by the hub's own client, against a server of its endpoints."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import constants

from ixc_lightning.publishing.hub import check_push, push_folder
from ixc_lightning.types import InputError
from tests.publishing.hub_server import TOKEN, serving

# huggingface_hub 2.4 hands files to its own client in a way that this calls old (2026-11).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = "---\ntags:\n- ixc_lightning\n---\n\n# Mine\n"
PUSH = """
import sys
from pathlib import Path
from ixc_lightning.publishing.hub import push_folder
print(push_folder(Path(sys.argv[1]), "me/mine"))
"""


@pytest.fixture
def hub(monkeypatch):
    """A hub, and this process set up as its environment would: the client reads that once, when imported."""
    with serving() as hub:
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    for name, content in {
        "a.safetensors": "a" * 999,
        "b.safetensors": "b" * 999,
        "config.json": "{}",
    }.items():
        (folder / name).write_text(content)
    (folder / "README.md").write_text(CARD)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_arrive_in_one_commit_in_a_private_repository(hub, folder):
    url = push_folder(folder, "me/mine")
    assert url == f"{hub.url}/me/mine/commit/{hub.sha}"
    assert hub.files == content(folder)
    assert len(hub.commits) == 1
    assert hub.private is True
    assert hub.cards == [CARD]  # the hub was asked whether it takes the front matter


@pytest.mark.slow
def test_hub_and_token_come_from_the_environment(hub, folder):
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", PUSH, str(folder)]
    subprocess.run(command, env={**os.environ, **own}, capture_output=True, check=True)
    assert hub.files == content(folder)


def test_a_repository_that_is_made_may_be_public(hub, folder):
    push_folder(folder, "me/mine", private=False)
    assert hub.private is False


def test_a_second_push_takes_out_stale_weights_in_the_same_commit_and_leaves_other_files(hub, folder):
    hub.private = False
    hub.files = {"old-00001-of-00009.safetensors": b"old", "LICENSE": b"mine", ".gitattributes": b"x"}
    push_folder(folder, "me/mine")
    assert hub.files == {**content(folder), "LICENSE": b"mine", ".gitattributes": b"x"}
    assert len(hub.commits) == 1
    assert hub.private is False  # it stays what it was


def test_a_push_that_was_cut_off_shows_nothing_and_goes_on_with_what_is_left(hub, folder):
    hub.max_uploads = 1
    with pytest.raises(InputError, match="is complete, but could not be pushed to me/mine") as refused:
        push_folder(folder, "me/mine")
    assert hub.files == {}
    assert hub.commits == []
    assert f"hf upload me/mine {folder}" in str(refused.value)
    assert "the store is full" in str(refused.value)
    hub.max_uploads = None
    push_folder(folder, "me/mine")
    assert hub.files == content(folder)
    assert len(hub.uploads) == len(set(hub.uploads)) == 2  # neither weight was sent twice


def test_what_others_commit_meanwhile_is_not_written_over(hub, folder):
    hub.has_rival = True
    with pytest.raises(InputError, match="412"):
        push_folder(folder, "me/mine")
    assert hub.files == {}
    push_folder(folder, "me/mine")
    assert hub.files == content(folder)


def test_a_token_that_the_hub_does_not_know_is_told_and_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match=r"could not be pushed to me/mine: .*401") as refused:
        push_folder(folder, "me/mine")
    assert "hf_wrong" not in str(refused.value)


def test_a_hub_that_cannot_be_reached_is_told(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"could not be pushed to me/mine: .*offline"):
        push_folder(folder, "me/mine")
    assert hub.files == {}


def test_without_a_token_nothing_is_begun(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="set HF_TOKEN in the environment"):
        check_push("me/mine")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_push("me/mine")


@pytest.mark.parametrize("name", ["a/b/c", "me/with space", "/abs", "-x"])
def test_a_name_that_cannot_be_a_repository_is_refused(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match="is no name of a repository"):
        check_push(name)
