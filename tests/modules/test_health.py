# SPDX-License-Identifier: Apache-2.0
"""A loss or gradient that is not finite: the run stops and names the samples, or goes on without the step."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import AdamW

from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.modules import PPOModule, RewardModule, RLOOModule, SFTModule
from ixc_lightning.modules.health import FILE, MOST_IN_A_ROW
from ixc_lightning.types import InputError
from tests.digits import instruction_data, preference_data, trainer
from tests.modules.policies import on_policy, prompt_data

BROKEN = 1  # the step, of three, that comes out wrong
STEPS = 3
COUNT = "train/skipped_steps"


def broken(kind, *, quantity="loss", always=False):
    """A module whose loss, or whose gradient alone, is not finite in one step, or in all."""

    class Broken(kind):
        def is_broken(self):
            return always or self.trainer.global_step == BROKEN

        def score(self, batch):
            chosen, rejected = super().score(batch)
            return (self.spoilt(chosen), rejected) if self.is_broken() else (chosen, rejected)

        def predict_responses(self, batch):
            predictions, mask = super().predict_responses(batch)
            if self.is_broken():
                predictions = predictions._replace(losses=self.spoilt(predictions.losses))
            return predictions, mask

        def spoilt(self, values):
            if quantity == "gradient":
                values.register_hook(lambda gradient: gradient * float("inf"))
                return values
            rows = torch.arange(len(values)) == 2
            return values.masked_fill(rows.reshape(-1, *[1] * (values.dim() - 1)), float("nan"))

    return Broken


class States(Callback):
    """Weights and optimiser states before and behind each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, *_):
        self.seen.append(self.state(trainer, module))

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(self.state(trainer, module))

    @staticmethod
    def state(trainer, module):
        moments = [
            moment for one in trainer.optimizers for state in one.state.values() for moment in state.values()
        ]
        return [value.clone() for value in [*module.state_dict().values(), *moments]]

    def changed(self, step):
        before, after = self.seen[2 * step], self.seen[2 * step + 1]
        return len(before) != len(after) or any(
            not torch.equal(*pair) for pair in zip(before, after, strict=True)
        )


def fit(kind, digits, tiny, folder, *, steps=STEPS, checkpoint=None, **options):
    optimizer = partial(AdamW, lr=1e-3)
    if issubclass(kind, RewardModule):
        module, data = kind(partial(RewardModel, str(tiny)), optimizer=optimizer, **options), preference_data
    else:
        module = kind(partial(Backbone, str(tiny), head=True), optimizer=optimizer, **options)
        data = instruction_data
    run, states = trainer(folder, max_steps=steps, max_epochs=5), States()
    run.callbacks.append(states)
    run.fit(module, data(digits, tiny, val=None, batch_size=4), ckpt_path=checkpoint, weights_only=True)
    return run, states


def lines(folder):
    return [json.loads(line) for line in (folder / "logs/version_0" / FILE).read_text().splitlines()]


@pytest.mark.parametrize("kind", [RewardModule, SFTModule])
def test_a_skipped_step_changes_nothing_and_the_next_one_trains(kind, digits, tiny_folder, tmp_path):
    run, states = fit(broken(kind), digits, tiny_folder, tmp_path, on_non_finite="skip")
    assert [states.changed(step) for step in range(STEPS)] == [True, False, True]
    assert run.global_step == STEPS
    assert run.logged_metrics[COUNT] == 1
    (line,) = lines(tmp_path)
    assert (line["step"], line["not_finite"]) == (BROKEN, "loss")


def test_the_file_names_the_pairs_whose_scores_are_not_finite(digits, tiny_folder, tmp_path):
    keys = []

    class Keys(broken(RewardModule)):
        def training_step(self, batch, batch_idx):
            keys.append(batch.keys)
            return super().training_step(batch, batch_idx)

    with pytest.raises(InputError, match=rf"the gradient of the model is nan in step {BROKEN}.*{FILE}"):
        fit(Keys, digits, tiny_folder, tmp_path)
    (line,) = lines(tmp_path)
    assert line["samples"] == [{"key": keys[BROKEN][2], "rank": 0}]


def test_where_the_gradient_alone_is_not_finite_all_samples_of_the_step_are_named(
    digits, tiny_folder, tmp_path
):
    kind = broken(RewardModule, quantity="gradient")
    _, states = fit(kind, digits, tiny_folder, tmp_path, on_non_finite="skip")
    assert not states.changed(BROKEN)
    (line,) = lines(tmp_path)
    assert line["not_finite"] == "gradient"
    assert line["gradient_norm"]["model"] in ("nan", "inf")
    assert len(line["samples"]) == 4


def test_a_run_that_skips_and_skips_is_stopped(digits, tiny_folder, tmp_path):
    kind = broken(RewardModule, always=True)
    with pytest.raises(InputError, match=f"{MOST_IN_A_ROW} steps in a row were left out"):
        fit(kind, digits, tiny_folder, tmp_path, steps=2 * MOST_IN_A_ROW, on_non_finite="skip")
    assert len(lines(tmp_path)) == MOST_IN_A_ROW


def test_the_count_of_skipped_steps_is_resumed(digits, tiny_folder, tmp_path):
    run, _ = fit(broken(RewardModule), digits, tiny_folder, tmp_path, on_non_finite="skip")
    run.save_checkpoint(tmp_path / "last.ckpt")
    options = {"steps": STEPS + 1, "checkpoint": tmp_path / "last.ckpt", "on_non_finite": "skip"}
    again, _ = fit(RewardModule, digits, tiny_folder, tmp_path / "again", **options)
    assert again.logged_metrics[COUNT] == 1


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_policy_and_critic_skip_a_step_together(role, digits, tiny_folder, tmp_path):
    class Broken(PPOModule):
        def policy_losses(self, experience, reading):
            return self.spoilt("policy", super().policy_losses(experience, reading))

        def value_losses(self, experience, values):
            return self.spoilt("critic", super().value_losses(experience, values))

        def spoilt(self, name, losses):
            return losses * float("nan") if name == role and self.trainer.global_step == BROKEN else losses

    states = States()
    module = on_policy(Broken, tiny_folder, on_non_finite="skip")
    run = trainer(tmp_path, max_steps=STEPS, max_epochs=5, limit_val_batches=0, callbacks=[states])
    run.fit(module, prompt_data(digits, tiny_folder))
    assert [states.changed(step) for step in range(STEPS)] == [True, False, True]
    assert run.global_step == STEPS
    assert run.logged_metrics[COUNT] == len(lines(tmp_path)) > 0


def test_a_policy_without_a_critic_names_the_prompts_of_its_minibatch(digits, tiny_folder, tmp_path):
    class Broken(RLOOModule):
        def policy_losses(self, experience, reading):
            return super().policy_losses(experience, reading) * float("nan")

    module = on_policy(Broken, tiny_folder)
    with pytest.raises(InputError, match="the gradient of the policy is nan in step 0"):
        trainer(tmp_path, limit_val_batches=0).fit(module, prompt_data(digits, tiny_folder))
    (line,) = lines(tmp_path)
    assert len(line["samples"]) == module.minibatch_size
    assert all("key" in sample for sample in line["samples"])


def test_training_runs_with_deterministic_algorithms_alone(digits, tiny_folder, tmp_path):
    try:
        run = trainer(tmp_path, deterministic=True, max_steps=1, limit_val_batches=0)
        run.fit(on_policy(PPOModule, tiny_folder, epochs=1), prompt_data(digits, tiny_folder))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert run.global_step == 1
