# SPDX-License-Identifier: Apache-2.0
"""A finished fit leaves a Hugging Face folder behind, and one that cannot be written is refused before it."""

import hashlib
from functools import partial
from importlib.metadata import version

import pytest
import torch
from torch.optim import AdamW

from ixc_lightning.callbacks import HuggingFaceExport
from ixc_lightning.datamodules.filters import LengthRatio
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import RewardModule
from ixc_lightning.publishing.runs import Run
from ixc_lightning.types import InputError
from tests.digits import preference_data, trainer


def _fit(digits, tiny_folder, tmp_path, callback, **options):
    module = RewardModule(partial(RewardModel, str(tiny_folder)), optimizer=partial(AdamW, lr=1e-3))
    run = trainer(tmp_path, max_steps=1, callbacks=[callback], **options)
    run.fit(module, preference_data(digits, tiny_folder, val=None))
    return module


def test_the_default_folder_is_export_in_the_log_folder(digits, tiny_folder, tmp_path):
    module = _fit(digits, tiny_folder, tmp_path, HuggingFaceExport())
    exported = RewardModel.from_pretrained(tmp_path / "logs/version_0/export").state_dict()
    own = module.model.state_dict()
    assert all(torch.equal(exported[name], own[name]) for name in own)


def test_without_a_logger_the_default_folder_is_in_the_root_of_the_run(digits, tiny_folder, tmp_path):
    _fit(digits, tiny_folder, tmp_path, HuggingFaceExport(), logger=False)
    assert (tmp_path / "export/reward_model.json").exists()


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"enabled": False}])
def test_nothing_is_written_by_a_trial_run_or_when_it_is_switched_off(digits, tiny_folder, tmp_path, options):
    callback = HuggingFaceExport(str(tmp_path / "out"), enabled=options.pop("enabled", True))
    _fit(digits, tiny_folder, tmp_path, callback, **options)
    assert not (tmp_path / "out").exists()


def test_the_card_tells_of_data_metrics_and_versions(digits, tiny_folder, tmp_path):
    _fit(digits, tiny_folder, tmp_path, HuggingFaceExport(str(tmp_path / "out")))
    text = (tmp_path / "out/README.md").read_text()
    sha256 = hashlib.sha256((digits / "preference/train/manifest.json").read_bytes()).hexdigest()
    assert f"`{sha256}`" in text
    assert "After 1 steps" in text
    assert "`train/loss`" in text
    assert f"| torch | {version('torch')} |" in text
    assert "video_frames=4" in text
    assert "started from Python" in text
    assert str(tmp_path) not in text


def test_a_checkpoint_is_told_what_its_card_is_to_say_even_where_nothing_is_exported(
    digits, tiny_folder, tmp_path
):
    callback = HuggingFaceExport(enabled=False)
    module = RewardModule(partial(RewardModel, str(tiny_folder)), optimizer=partial(AdamW, lr=1e-3))
    run = trainer(tmp_path, max_steps=2, callbacks=[callback])
    run.fit(module, preference_data(digits, tiny_folder, val=None))
    run.save_checkpoint(tmp_path / "a.ckpt")
    told = Run.of_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert told.step == 2
    assert told.metrics["train/loss"] == run.callback_metrics["train/loss"].item()
    assert [(entry["split"], entry["samples"]) for entry in told.data] == [("train", 48)]
    assert told.reading == {"max_tokens": None, "video_frames": 4, "response_suffix": ""}


def test_what_filters_left_out_is_told(digits, tiny_folder, tmp_path):
    module = RewardModule(partial(RewardModel, str(tiny_folder)), optimizer=partial(AdamW, lr=1e-3))
    data = preference_data(digits, tiny_folder, val=None, filters=[LengthRatio(limit=1.5)])
    callback = HuggingFaceExport(str(tmp_path / "out"))
    trainer(tmp_path, max_steps=1, callbacks=[callback]).fit(module, data)
    (entry,) = callback.run.data
    assert callback.run.dropped == data.dropped
    assert entry["samples"] == len(data.dataset("train")) < 48
    assert "Filters left out training records: LengthRatio" in (tmp_path / "out/README.md").read_text()


def test_a_folder_that_holds_something_else_is_refused_before_training(digits, tiny_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no exported model"):
        _fit(digits, tiny_folder, tmp_path, HuggingFaceExport(str(tmp_path / "out")))


def test_a_push_without_a_token_is_refused_before_training(digits, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="set HF_TOKEN"):
        _fit(digits, tiny_folder, tmp_path, HuggingFaceExport(push_to_hub="me/mine"))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_fit_without_a_datamodule_is_refused_before_it_starts(tiny_folder, tmp_path):
    module = RewardModule(partial(RewardModel, str(tiny_folder)), optimizer=partial(AdamW, lr=1e-3))
    module.setup = lambda stage: None
    run = trainer(tmp_path, callbacks=[HuggingFaceExport()], limit_val_batches=0)
    with pytest.raises(InputError, match="datamodule that names its processor"):
        run.fit(module, torch.utils.data.DataLoader([0]))


def test_a_file_in_the_folder_s_place_is_refused_before_training(digits, tiny_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        _fit(digits, tiny_folder, tmp_path, HuggingFaceExport(str(tmp_path / "out")))
