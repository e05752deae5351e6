# SPDX-License-Identifier: Apache-2.0
"""A policy is trained from the command line, and what a checkpoint of it holds becomes a folder."""

from shutil import rmtree

import pytest
import torch

from ixc_lightning.cli.main import main
from ixc_lightning.cli.trainer import run_trainer
from ixc_lightning.export import export_folder
from ixc_lightning.models import Backbone, RewardModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.slow,
]

CRITIC = (
    *("--model.critic_warmup", "0"),
    *("--model.critic_scheduler", "ixc_lightning.modules.WarmupLinearLR"),
)


@pytest.mark.parametrize("recipe", ["ppo", "rloo"])
def test_the_policy_of_a_checkpoint_is_exported_where_no_other_role_is_left(
    recipe, digits, tiny_folder, tmp_path
):
    judge = str(export_folder(RewardModel(str(tiny_folder)), str(tiny_folder), tmp_path / "reward"))
    saver = "lightning.pytorch.callbacks.ModelCheckpoint"
    run = run_trainer(
        [
            *("fit", "--config", f"recipes/{recipe}.yaml"),
            *("--model.policy.source", str(tiny_folder)),
            *("--model.reward_model.source", judge),
            *(("--model.critic.source", judge, *CRITIC) if recipe == "ppo" else ()),
            *("--model.sampling.n", "2", "--model.sampling.max_tokens", "3", "--model.minibatch_size", "4"),
            *("--model.scheduler.warmup_steps", "0"),
            *("--data.train", str(digits / "prompt/train"), "--data.val", str(digits / "prompt/heldout")),
            *("--data.batch_size", "4", "--data.eval_batch_size", "4", "--data.num_workers", "0"),
            *(
                "--trainer.accelerator",
                "cpu",
                "--trainer.max_steps",
                "2",
                "--trainer.val_check_interval",
                "1",
            ),
            *("--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0"),
            *("--trainer.callbacks+", "ixc_lightning.callbacks.Throughput"),
            *("--trainer.callbacks+", saver, "--trainer.callbacks.every_n_train_steps", "1"),
            *("--trainer.logger.save_dir", str(tmp_path), "--export.folder", str(tmp_path / "export")),
        ]
    )
    assert run.trainer.global_step == 2
    assert run.trainer.logged_metrics["train/prompts_per_second"] > 0
    rates = [config.scheduler.get_last_lr() for config in run.trainer.lr_scheduler_configs]
    assert rates[1:] == ([[0.0]] if recipe == "ppo" else [])  # the critic's ends with the trainer too
    trained = run.model.policy.state_dict()
    rmtree(judge)
    main(["export", run.trainer.checkpoint_callback.best_model_path, str(tmp_path / "again")])
    for folder in ("export", "again"):
        exported = Backbone(str(tmp_path / folder), head=True).state_dict()
        assert all(torch.equal(exported[name], trained[name]) for name in trained)
    start = Backbone(str(tiny_folder), head=True).state_dict()
    assert any(not torch.equal(trained[name], start[name]) for name in trained)
