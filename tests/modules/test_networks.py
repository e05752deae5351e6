# SPDX-License-Identifier: Apache-2.0
"""Who takes part: what is refused before it costs anything, and which checkpoints a run goes on from."""

from functools import partial
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from transformers import AutoProcessor

from ixc_lightning.models import RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.modules import AdaptiveKL, DomainScale, PPOModule, RLOOModule
from ixc_lightning.types import InputError
from tests.digits import trainer
from tests.modules.policies import judged, on_policy, prompt_data

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def interrupting(module, method, call, action):
    """Make the ``call``-th call of a method of the module do something else first."""
    calls, own = [], getattr(module, method)

    def instead(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            action()
        return own(*args, **kwargs)

    setattr(module, method, instead)
    return module


def ppo(tiny, **options):
    settings = {"kl": AdaptiveKL(0.05, target=0.01, horizon=20), "score_scale": DomainScale()}
    return on_policy(PPOModule, tiny, **settings, **judged(tiny), **options)


def fit(module, digits, tiny, folder, *, checkpoint=None, **options):
    run = trainer(folder, **{"max_steps": 2, "max_epochs": 4, "limit_val_batches": 0, **options})
    run.fit(module, prompt_data(digits, tiny, batch_size=2), ckpt_path=checkpoint, weights_only=True)
    return run


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_precision_in_which_training_does_not_hold_is_refused(precision, digits, tiny_folder, tmp_path):
    with pytest.raises(InputError, match=f"trainer.precision is {precision}, .*32-true or bf16-mixed"):
        fit(on_policy(RLOOModule, tiny_folder), digits, tiny_folder, tmp_path, precision=precision)


def test_torch_s_first_fsdp_is_refused_with_the_strategy_to_take(tiny_folder):
    module = on_policy(RLOOModule, tiny_folder)
    module._trainer = SimpleNamespace(precision="32-true", strategy=FSDPStrategy())
    with pytest.raises(InputError, match=r"FSDPStrategy, .* give ModelParallelStrategy"):
        module.setup("fit")


def test_in_bfloat16_the_ratio_starts_at_one_and_the_weights_stay_float32(digits, tiny_folder, tmp_path):
    module = on_policy(RLOOModule, tiny_folder, minibatch_size=8, epochs=1)
    run = fit(module, digits, tiny_folder, tmp_path, max_steps=1, precision="bf16-mixed")
    assert run.logged_metrics["train/first_ratio"] == pytest.approx(1, abs=1e-2)  # 8 bits of mantissa
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("role", "options"),
    [("reward model", {"reward_model": RewardModel}), ("critic", {"critic": Critic})],
)
def test_a_role_with_another_tokenizer_is_refused_when_training_starts(
    role, options, digits, tiny_folder, tmp_path
):
    other = copytree(tiny_folder, tmp_path / "other")
    processor = AutoProcessor.from_pretrained(other)
    processor.tokenizer.add_tokens(["<another>"])
    processor.save_pretrained(other)
    module = on_policy(
        PPOModule, tiny_folder, **{name: partial(kind, str(other)) for name, kind in options.items()}
    )
    with pytest.raises(InputError, match=f"the {role} has another tokenizer than the policy"):
        fit(module, digits, tiny_folder, tmp_path)


def test_a_reward_token_that_no_response_holds_is_refused_when_training_starts(digits, tiny_folder, tmp_path):
    build = partial(RewardModel, str(tiny_folder), pooling="token", reward_token_id=7)
    module = on_policy(RLOOModule, tiny_folder, reward_model=build)
    with pytest.raises(InputError, match="token 7, which no response ends with: give reward_suffix"):
        fit(module, digits, tiny_folder, tmp_path)


@pytest.mark.parametrize("step", ["score", "experience"])
def test_a_checkpoint_from_before_the_first_step_of_an_iteration_is_that_of_its_start(
    step, digits, tiny_folder, tmp_path
):
    whole = ppo(tiny_folder)
    file = tmp_path / "midway.ckpt"
    interrupting(whole, step, 2, lambda: whole.trainer.save_checkpoint(file))
    run = fit(whole, digits, tiny_folder, tmp_path / "whole")
    resumed = ppo(tiny_folder)
    again = fit(resumed, digits, tiny_folder, tmp_path / "again", checkpoint=file)
    assert torch.load(file, weights_only=True)["global_step"] == 1
    assert again.global_step == run.global_step == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.kl.coef == whole.kl.coef
    assert resumed.score_scale.moments == whole.score_scale.moments


def test_a_checkpoint_from_between_two_steps_of_an_iteration_is_not_trained_on(digits, tiny_folder, tmp_path):
    module = ppo(tiny_folder, minibatch_size=2)
    file = tmp_path / "midway.ckpt"
    interrupting(module, "update", 2, lambda: module.trainer.save_checkpoint(file))
    fit(module, digits, tiny_folder, tmp_path, max_steps=1)
    with pytest.raises(
        InputError, match=r"written in the midst of an iteration.*resume from the checkpoint before"
    ):
        fit(ppo(tiny_folder), digits, tiny_folder, tmp_path, checkpoint=file)
