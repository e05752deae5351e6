# SPDX-License-Identifier: Apache-2.0
"""An exported folder is complete or not there, and what stood in its place stays until it is."""

import json

import pytest
from huggingface_hub import ModelCard

from ixc_lightning import export
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
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_holds_model_head_and_processor(tiny_folder, tmp_path):
    export_folder(RewardModel(str(tiny_folder)), str(tiny_folder), tmp_path / "a/export")
    names = {path.name for path in (tmp_path / "a/export").iterdir()}
    assert {"config.json", "model.safetensors", "reward_model.json", "tokenizer.json"} <= names
    assert {"processor_config.json", "chat_template.jinja", "README.md"} <= names


def test_a_failure_midway_leaves_the_old_folder_whole_and_nothing_beside_it(old, tiny_folder):
    with pytest.raises(OSError, match="no space"):
        export_folder(Breaking(), str(tiny_folder), old)
    assert (old / "old.txt").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_a_processor_that_cannot_be_loaded_is_named_and_leaves_the_old_folder_whole(old, tiny_folder):
    with pytest.raises(InputError, match="'/nowhere/processor'"):
        export_folder(Backbone(str(tiny_folder)), "/nowhere/processor", old)
    assert {path.name for path in old.iterdir()} == {"config.json", "old.txt"}


def test_a_complete_export_replaces_the_old_folder(old, tiny_folder):
    assert export_folder(Backbone(str(tiny_folder), head=True), str(tiny_folder), old) == old
    assert not (old / "old.txt").exists()
    assert (old / "config.json").exists()
    assert list(old.parent.iterdir()) == [old]


def test_a_folder_can_be_exported_over_the_model_that_it_came_from(tiny_folder, tmp_path):
    first = export_folder(Backbone(str(tiny_folder), head=True), str(tiny_folder), tmp_path / "model")
    export_folder(Backbone(str(first), head=True), str(first), first)
    assert Backbone(str(first), head=True).has_head


def test_a_folder_that_holds_no_model_is_not_replaced(tiny_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no exported model, and would be replaced"):
        export_folder(Breaking(), str(tiny_folder), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tiny_folder, tmp_path):
    export_folder(Backbone(str(tiny_folder), head=True), str(tiny_folder), tmp_path)
    assert (tmp_path / "config.json").exists()


def test_the_card_goes_on_with_the_base_model_of_the_start(tiny_folder, tmp_path):
    start = export_folder(Backbone(str(tiny_folder), head=True), str(tiny_folder), tmp_path / "start")
    ModelCard("---\nbase_model: org/base\n---\n").save(start / "README.md")
    folder = export_folder(RewardModel(str(start)), str(start), tmp_path / "export")
    assert ModelCard.load(folder / "README.md").data.base_model == "org/base"
    over = export_folder(Backbone(str(start), head=True), str(start), start)
    assert ModelCard.load(over / "README.md").data.base_model == "org/base"


def test_a_text_model_that_reads_the_last_token_is_written_as_a_classifier_and_others_are_not(tiny, tmp_path):
    source = tiny("qwen2").folder
    last = export_folder(RewardModel(source, pooling="last"), source, tmp_path / "last")
    mean = export_folder(RewardModel(source), source, tmp_path / "mean")
    assert json.loads((last / "config.json").read_text())["architectures"] == [
        "Qwen2ForSequenceClassification"
    ]
    assert json.loads((mean / "config.json").read_text())["architectures"] == ["Qwen2Model"]
    assert RewardModel.from_pretrained(last).pooling == "last"
    assert "It does not load as `AutoModelForSequenceClassification`" not in (last / "README.md").read_text()


def test_a_complete_folder_is_pushed_under_its_name_on_the_hub(tiny_folder, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(export, "push_folder", lambda *given, **options: pushed.append((given, options)))
    model = Backbone(str(tiny_folder), head=True)
    folder = export_folder(model, str(tiny_folder), tmp_path / "a", push_to_hub="me/mine", private=False)
    assert pushed == [((folder, "me/mine"), {"private": False})]
    text = (folder / "README.md").read_text()
    assert "# mine" in text
    assert "from_pretrained('me/mine')" in text


def test_a_push_that_cannot_be_is_refused_before_anything_is_written(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="set HF_TOKEN"):
        export_folder(Breaking(), str(tiny_folder), tmp_path / "a", push_to_hub="me/mine")
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_folder_s_place_is_refused(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        export_folder(Breaking(), str(tiny_folder), tmp_path / "file")
