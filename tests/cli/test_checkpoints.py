# SPDX-License-Identifier: Apache-2.0
"""A checkpoint becomes a folder with the card that the run itself would have written; others are refused."""

import shutil
from functools import partial

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from torch.optim import AdamW

from ixc_lightning.cli.main import main, run
from ixc_lightning.metrics import VLRewardBench
from ixc_lightning.metrics.result_files import write_results
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import RewardModule
from ixc_lightning.types import InputError
from tests.cli.commands import words
from tests.digits import preference_data, trainer
from tests.metrics.scored import item, numbered

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(scope="module")
def trained(digits, tiny_folder, tmp_path_factory):
    """A run of the reward recipe over a copy of the tiny model, with its export, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_folder, folder / "start")
    main(words("fit", "reward", folder / "start", digits, folder, "--export.folder", str(folder / "export")))
    return folder, next((folder / "reward").rglob("*.ckpt"))


def _refused(message, *command):
    with pytest.raises(InputError, match=message):
        run(["export", *map(str, command)])


def test_the_card_is_the_one_that_the_run_wrote(trained, tmp_path):
    folder, checkpoint = trained
    main(["export", str(checkpoint), str(tmp_path / "export")])
    card = (tmp_path / "export/README.md").read_text()
    assert card == (folder / "export/README.md").read_text()


def test_the_card_tells_recipe_data_and_metrics_without_a_place_of_this_machine(trained, digits, tmp_path):
    text = (trained[0] / "export/README.md").read_text()
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["trainer"]["max_steps"] == 2
    assert recipe["data"]["init_args"]["train"] == "…/train"
    assert recipe["model"]["class_path"] == "ixc_lightning.modules.RewardModule"
    assert "needs" not in recipe
    assert "preference/train" in text
    assert "After 2 steps" in text
    assert "`val/accuracy`" in text
    for place in (trained[0], digits.parent, tmp_path.parent):
        assert str(place) not in text
    assert ModelCard(text).data.eval_results[0].metric_name == "val/accuracy"


def test_an_evaluation_goes_into_the_card(trained, tmp_path):
    groups = ("general", "hallucination", "reasoning")
    write_results(tmp_path, VLRewardBench(), "mine", numbered(*(item(group, 1.0, 0.0) for group in groups)))
    scores = str(tmp_path / "vl_rewardbench.jsonl")
    main(["export", str(trained[1]), str(tmp_path / "out"), "--evaluations", scores])
    results = ModelCard.load(tmp_path / "out/README.md").data.eval_results
    assert {result.dataset_type for result in results} == {"held-out", "vl_rewardbench"}


def test_a_start_that_has_moved_is_named_by_source(trained, tmp_path):
    folder, checkpoint = trained
    (folder / "start").rename(folder / "moved")
    try:
        _refused(
            "trained from .*start, where there is no folder: give --source", checkpoint, tmp_path / "out"
        )
        main(["export", str(checkpoint), str(tmp_path / "out"), "--source", str(folder / "moved")])
    finally:
        (folder / "moved").rename(folder / "start")
    exported = RewardModel.from_pretrained(tmp_path / "out").state_dict()
    own = RewardModel.from_pretrained(folder / "export").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in exported.items())


def test_a_start_of_another_architecture_is_refused(trained, tiny, tmp_path):
    _refused("another architecture", trained[1], tmp_path / "out", "--source", tiny("internvl").folder)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_weights_is_refused_by_name(trained, tmp_path):
    saved = torch.load(trained[1], weights_only=True)
    del saved["state_dict"]["model.score.weight"]
    torch.save(saved, tmp_path / "less.ckpt")
    _refused(r"1 missing \(first: model.score.weight\)", tmp_path / "less.ckpt", tmp_path / "out")


def test_a_checkpoint_of_another_class_is_not_run(trained, tmp_path):
    saved = torch.load(trained[1], weights_only=True)
    saved["hyper_parameters"]["_class_path"] = "mine.Module"
    torch.save(saved, tmp_path / "mine.ckpt")
    _refused(
        "was written by mine.Module, whose code is not run here", tmp_path / "mine.ckpt", tmp_path / "out"
    )


@pytest.mark.parametrize("content", [{"a": 1}, [1], {"state_dict": {}}])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "no.ckpt")
    _refused("cannot be read as a checkpoint of this package", tmp_path / "no.ckpt", tmp_path / "out")


def test_a_checkpoint_that_was_cut_off_is_refused(trained, tmp_path):
    data = trained[1].read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    _refused("cannot be read as a checkpoint of this package", tmp_path / "cut.ckpt", tmp_path / "out")


def test_a_checkpoint_of_a_run_from_python_says_how_to_export_it(digits, tiny_folder, tmp_path):
    module = RewardModule(partial(RewardModel, str(tiny_folder)), optimizer=partial(AdamW, lr=1e-3))
    own = trainer(tmp_path, max_steps=1)
    own.fit(module, preference_data(digits, tiny_folder, val=None))
    own.save_checkpoint(tmp_path / "python.ckpt")
    _refused("does not say which model it is of.*export_folder", tmp_path / "python.ckpt", tmp_path / "out")


def test_a_folder_that_is_exported_already_is_told(trained, tmp_path):
    _refused("was exported already.*ixc_lightning card", trained[0] / "export", tmp_path / "out")


def test_a_folder_that_holds_something_else_is_not_replaced(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    _refused("holds something that is no exported model", trained[1], tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_push_without_a_token_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    _refused("set HF_TOKEN", tmp_path / "none.ckpt", tmp_path / "out", "--push_to_hub", "me/mine")
