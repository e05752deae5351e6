# SPDX-License-Identifier: Apache-2.0
"""The packaged recipes run from the command line, every key can be overridden, and names are given once."""

import math

import pytest
import torch
import yaml

from ixc_lightning.cli.main import main
from ixc_lightning.cli.trainer import first_source, run_trainer
from ixc_lightning.models import Backbone, RewardModel
from tests.cli.commands import words

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]


@pytest.fixture(scope="module")
def sft(digits, tiny_folder, tmp_path_factory):
    """A run of the fine-tuning recipe for two steps, and its folder."""
    folder = tmp_path_factory.mktemp("sft")
    run = run_trainer(words("fit", "sft", tiny_folder, digits, folder, "--export.folder", f"{folder}/out"))
    return run, folder


@pytest.fixture(scope="module")
def reward(sft, digits, tmp_path_factory):
    """A run of the reward recipe for two steps from what the first one exported, and its folder."""
    folder = tmp_path_factory.mktemp("reward")
    more = ("--export.folder", f"{folder}/out", "--trainer.log_every_n_steps", "1")
    run = run_trainer(words("fit", "reward", sft[1] / "out", digits, folder, *more))
    return run, folder


@pytest.fixture(scope="module")
def checkpoint(reward):
    return str(next((reward[1] / "reward").rglob("*.ckpt")))


def _evaluate(verb, reward, digits, tmp_path, *more):
    return run_trainer(words(verb, "reward", reward[1] / "out", digits, tmp_path, *more))


def test_the_fine_tuning_recipe_exports_a_model_with_its_head(sft):
    run, folder = sft
    assert run.trainer.global_step == 2
    assert Backbone(str(folder / "out"), head=True).has_head


def test_the_reward_recipe_exports_a_reward_model(reward):
    run, folder = reward
    assert run.trainer.global_step == 2
    exported = RewardModel.from_pretrained(folder / "out").state_dict()
    own = run.model.model.state_dict()
    assert all(torch.equal(exported[name], own[name]) for name in own)


def test_the_processor_is_that_of_the_model_that_the_command_line_names(reward, sft):
    assert reward[0].datamodule.processor == str(sft[1] / "out")


def test_the_schedule_runs_to_the_last_step_of_the_trainer(reward):
    assert reward[0].trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]


def test_the_settings_of_the_run_are_saved_beside_its_logs(reward):
    saved = yaml.safe_load(next((reward[1] / "reward").rglob("config.yaml")).read_text())
    assert saved["trainer"]["max_steps"] == 2


def test_a_second_config_lies_over_the_first(sft, digits, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {optimizer: {init_args: {lr: 0.125}}}}\ntrainer: {max_steps: 1}\n")
    command = words("validate", "reward", sft[1] / "out", digits, tmp_path)
    run = run_trainer([*command, "--config", str(overlay)])
    settings = run.config.validate
    assert settings.model.init_args.optimizer.init_args.lr == 0.125
    assert settings.model.init_args.optimizer.init_args.weight_decay == 0.05


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.optimizer.lr", 0.5),
        ("model.model.pooling", "last"),
        ("model.label_smoothing", 0.25),
        ("data.video_frames", 2),
        ("trainer.gradient_clip_val", 0.5),
        ("export.enabled", False),
        ("seed_everything", 3),
    ],
)
def test_every_key_can_be_given_on_the_command_line(key, value, capsys, tiny_folder, digits, tmp_path):
    command = words("fit", "reward", tiny_folder, digits, tmp_path, f"--{key}", str(value), "--print_config")
    with pytest.raises(SystemExit) as ended:
        run_trainer(command)
    assert ended.value.code == 0
    node = yaml.safe_load(capsys.readouterr().out)
    for name in key.split("."):
        node = node.get(name, node.get("init_args", {}).get(name)) if isinstance(node, dict) else node
    assert node == value


def test_validate_and_test_give_the_metrics_of_an_exported_model(reward, digits, tmp_path):
    validated = _evaluate("validate", reward, digits, tmp_path).trainer.callback_metrics
    tested = _evaluate("test", reward, digits, tmp_path).trainer.callback_metrics
    assert tested["test/loss"] == validated["val/loss"]
    assert math.isclose(tested["test/loss"], reward[0].trainer.callback_metrics["val/loss"], rel_tol=1e-6)


def test_predict_scores_every_record_of_an_exported_model(reward, digits, tmp_path):
    run = _evaluate("predict", reward, digits, tmp_path)
    assert len(run.trainer.predict_loop.predictions[0]["keys"]) == 16


def test_a_checkpoint_does_not_overwrite_what_the_command_line_says(reward, checkpoint, digits, tmp_path):
    run = _evaluate("test", reward, digits, tmp_path, "--ckpt_path", checkpoint, "--model.optimizer.lr=0.5")
    assert run.config.test.model.init_args.optimizer.init_args.lr == 0.5


def test_a_run_is_resumed_from_a_checkpoint_that_needs_no_unpickling(
    sft, reward, checkpoint, digits, tmp_path
):
    more = ("--trainer.max_steps", "3", "--ckpt_path", checkpoint)
    run = run_trainer(words("fit", "reward", sft[1] / "out", digits, tmp_path, *more))
    assert run.trainer.global_step == 3
    assert run.config.fit.weights_only is True
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2


def test_export_of_a_checkpoint_scores_as_the_module_does_bit_for_bit(reward, checkpoint, tmp_path):
    main(["export", checkpoint, str(tmp_path / "exported")])
    model = RewardModel.from_pretrained(tmp_path / "exported")
    module, data = reward[0].model, reward[0].datamodule
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        expected = module.eval().score(batch)
        module.model, own = model, module.model
        scores = module.score(batch)
        module.model = own
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(scores, expected, strict=True))


def test_export_of_a_fine_tuning_checkpoint_loads_in_transformers_and_generates(sft, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    main(["export", str(next((sft[1] / "sft").rglob("*.ckpt"))), str(tmp_path / "exported")])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported")
    processor = AutoProcessor.from_pretrained(tmp_path / "exported")
    conversation = [{"role": "user", "content": [{"type": "text", "text": "three plus four"}]}]
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 3
    own = sft[0].model.model.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_the_first_source_is_found_however_deep_it_is():
    assert first_source({"a": {"b": 1}, "c": {"source": "x"}, "source": None}) == "x"
    assert first_source({"a": [1]}) is None
