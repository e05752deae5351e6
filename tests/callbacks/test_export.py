# SPDX-License-Identifier: Apache-2.0
"""A finished fit leaves a Hugging Face folder behind, and one that cannot be written is refused before it."""

from functools import partial

import pytest
import torch
from torch.optim import AdamW

from ixc_lightning.callbacks import HuggingFaceExport
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import RewardModule
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
