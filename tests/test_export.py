# SPDX-License-Identifier: Apache-2.0
"""An exported folder is complete or not there, and what stood in its place stays until it is."""

import pytest

from ixc_lightning.export import export_folder
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.types import InputError


class Breaking:
    """A model whose writing stops midway."""

    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("no space left on device")


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    return folder


def test_a_folder_holds_model_head_and_processor(tiny_folder, tmp_path):
    export_folder(RewardModel(str(tiny_folder)), str(tiny_folder), tmp_path / "a/export")
    names = {path.name for path in (tmp_path / "a/export").iterdir()}
    assert {"config.json", "model.safetensors", "reward_model.json", "tokenizer.json"} <= names
    assert {"processor_config.json", "chat_template.jinja"} <= names


def test_a_failure_midway_leaves_the_old_folder_whole_and_nothing_beside_it(old, tiny_folder):
    with pytest.raises(OSError, match="no space"):
        export_folder(Breaking(), str(tiny_folder), old)
    assert (old / "old.txt").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_a_processor_that_cannot_be_loaded_is_named_and_leaves_the_old_folder_whole(old, tiny_folder):
    with pytest.raises(InputError, match="'/nowhere/processor'"):
        export_folder(Backbone(str(tiny_folder)), "/nowhere/processor", old)
    assert [path.name for path in old.iterdir()] == ["old.txt"]


def test_a_complete_export_replaces_the_old_folder(old, tiny_folder):
    assert export_folder(Backbone(str(tiny_folder), head=True), str(tiny_folder), old) == old
    assert not (old / "old.txt").exists()
    assert (old / "config.json").exists()
    assert list(old.parent.iterdir()) == [old]


def test_a_folder_can_be_exported_over_the_model_that_it_came_from(tiny_folder, tmp_path):
    first = export_folder(Backbone(str(tiny_folder), head=True), str(tiny_folder), tmp_path / "model")
    export_folder(Backbone(str(first), head=True), str(first), first)
    assert Backbone(str(first), head=True).has_head


def test_a_file_in_the_folder_s_place_is_refused(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        export_folder(Breaking(), str(tiny_folder), tmp_path / "file")
