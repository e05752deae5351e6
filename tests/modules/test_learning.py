# SPDX-License-Identifier: Apache-2.0
"""How the policy learns: the same however a minibatch is divided, and by the ratio and bonus asked for."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import SGD

from ixc_lightning.functional.policy_loss import ppo_clip_losses
from ixc_lightning.modules import FixedKL, GRPOModule, OnPolicyModule, PPOModule, RLOOModule
from ixc_lightning.modules.experience import Reading
from ixc_lightning.rollout import Sampling
from ixc_lightning.types import InputError
from tests.digits import trainer
from tests.modules.experiences import experience
from tests.modules.policies import on_policy, prompt_data

SAME = 1e-5  # float32, sums in another order
RELATIVE = 1e-6  # of a number of many times that size
EARLY = Sampling(n=2, max_tokens=6, stop_tokens=tuple(range(0, 200, 2)))  # ends early, often: ragged rows


class Plain(OnPolicyModule):
    """Rewards as advantages, and a critic that learns them; keeps the losses of its minibatches."""

    def advantages(self, experience):
        self.found = []
        verdict = experience.spread(experience.scores)
        return verdict._replace(returns=verdict.advantages)

    def policy_part(self, part, pictures, total):
        reading, loss = super().policy_part(part, pictures, total)
        self.found.append((len(part.valid), loss.item()))
        return reading, loss


class Start(Callback):
    def on_train_start(self, trainer, pl_module):
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def fit(module, digits, tiny, folder, **options):
    run = trainer(folder, **{"max_steps": 1, "limit_val_batches": 0, **options})
    run.fit(module, prompt_data(digits, tiny))
    return run


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_a_minibatch_computed_in_parts_makes_the_step_of_the_whole(
    aggregation, digits, tiny_folder, tmp_path
):
    def after(rows):
        kind = type("Kind", (PPOModule,), {"aggregation": aggregation})
        sgd = {"optimizer": partial(SGD, lr=0.1), "critic_optimizer": partial(SGD, lr=0.1)}
        module = on_policy(
            kind, tiny_folder, **sgd, sampling=EARLY, rows_at_once=rows, minibatch_size=8, epochs=1
        )
        run = fit(module, digits, tiny_folder, tmp_path / str(rows))
        return module.state_dict(), run.logged_metrics

    (whole, metrics), (parts, metrics_of_parts) = after(8), after(3)
    assert metrics["train/length"] < EARLY.max_tokens  # rows are ragged, or the weights would not matter
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=SAME, rtol=0, msg=name)
    for name in ("policy_loss", "value_loss", "gradient_norm", "critic_gradient_norm", "entropy"):
        expected = metrics[f"train/{name}"].item()
        assert metrics_of_parts[f"train/{name}"] == pytest.approx(expected, rel=RELATIVE, abs=SAME)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_sum"])
def test_the_logged_policy_loss_is_the_mean_of_what_the_minibatches_minimised(
    aggregation, digits, tiny_folder, tmp_path
):
    kind = type("Kind", (Plain,), {"aggregation": aggregation})
    module = on_policy(kind, tiny_folder, sampling=EARLY, rows_at_once=2, minibatch_size=4, epochs=1)
    run = fit(module, digits, tiny_folder, tmp_path)
    assert [rows for rows, _ in module.found] == [2, 2, 2, 2]
    losses = [loss for _, loss in module.found]
    assert run.logged_metrics["train/policy_loss"] == pytest.approx(sum(losses) / 2, abs=SAME)


def test_a_gradient_that_is_not_finite_names_role_and_step_and_changes_nothing(digits, tiny_folder, tmp_path):
    class Broken(PPOModule):
        def policy_losses(self, experience, reading):
            return super().policy_losses(experience, reading) * float("inf")

    module, start = on_policy(Broken, tiny_folder), Start()
    with pytest.raises(InputError, match=r"the gradient of the policy is (nan|inf) in step 0"):
        fit(module, digits, tiny_folder, tmp_path, callbacks=[start])
    for name, value in module.state_dict().items():
        assert torch.equal(value, start.state[name]), name  # not even the critic, whose gradient was finite


@pytest.mark.parametrize("kind", [PPOModule, RLOOModule, GRPOModule])
def test_ratio_to_reference_is_equation_3_as_it_is_printed(kind, tiny_folder):
    given = experience()
    given = given._replace(advantages=given.values)
    reading = Reading(given.logprobs + 0.3 * given.response_mask, torch.zeros_like(given.logprobs))
    module = on_policy(kind, tiny_folder, kl=FixedKL(0.0), ratio_to="reference")
    mask = given.response_mask
    ratio = (reading.logprobs - given.ref_logprobs).double().exp()
    advantages = given.advantages.double()
    expected = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    found = module.policy_losses(given, reading)
    torch.testing.assert_close(found[mask].double(), expected[mask], atol=SAME, rtol=SAME)
    to_old = on_policy(kind, tiny_folder, kl=FixedKL(0.0)).policy_losses(given, reading)
    expected = ppo_clip_losses(reading.logprobs, given.logprobs, given.advantages, ratio_clip=0.2)
    assert torch.equal(to_old, expected)
    assert not torch.allclose(to_old[mask], found[mask], atol=0.01)


def test_an_entropy_bonus_keeps_the_policy_less_sure(digits, tiny_folder, tmp_path):
    def entropy(coef):
        module = on_policy(
            RLOOModule,
            tiny_folder,
            optimizer=partial(SGD, lr=1.0),
            entropy_coef=coef,
            epochs=3,
            minibatch_size=8,
        )
        return fit(module, digits, tiny_folder, tmp_path / str(coef)).logged_metrics["train/entropy"]

    assert entropy(1.0) > entropy(0.0) > entropy(-1.0)


def test_the_critic_s_learning_rate_has_its_own_schedule(digits, tiny_folder, tmp_path):
    class Rates(Callback):
        seen = ()

        def on_train_batch_end(self, trainer, *_):
            self.seen = (*self.seen, tuple(one.param_groups[0]["lr"] for one in trainer.optimizers))

    halve = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    module, rates = on_policy(PPOModule, tiny_folder, critic_scheduler=halve), Rates()
    fit(module, digits, tiny_folder, tmp_path, max_steps=2, callbacks=[rates])
    assert rates.seen == ((1e-3, 5e-4), (1e-3, 2.5e-4))
