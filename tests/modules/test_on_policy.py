# SPDX-License-Identifier: Apache-2.0
"""What holds for every algorithm: it starts at ratio 1, changes only what it trains, and goes on exactly."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim import AdamW

from ixc_lightning.functional.advantages import group_advantages
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.modules import (
    AdaptiveKL,
    DomainScale,
    GRPOModule,
    OnPolicyModule,
    PPOModule,
    RLOOModule,
    WeightedVerifier,
)
from ixc_lightning.rollout import ExactMatch, Sampling
from ixc_lightning.types import MODALITIES, InputError
from tests.digits import trainer
from tests.modules.policies import judged, on_policy, prompt_data

SAME = 1e-5  # float32, sums in another order
KINDS = (PPOModule, RLOOModule, GRPOModule)


class Nothing:
    """A verifier that can not say anything about some answers."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, texts, rollout):
        scores = torch.ones(len(texts))
        scores[self.rows] = torch.nan
        return scores


class Seen(OnPolicyModule):
    """Dr. GRPO, written outside of the package; keeps what it saw."""

    aggregation = "sequence_sum"

    def advantages(self, experience):
        centred = group_advantages(experience.scores, experience.rollout.prompt_index, experience.valid)
        self.experience_seen = experience
        return experience.spread(centred)

    def policy_losses(self, experience, reading):
        losses = super().policy_losses(experience, reading)
        if not hasattr(self, "first"):
            self.first = experience, reading
            reading.logprobs.retain_grad()
        return losses


class Everywhere(Seen):
    """A loss with a gradient at every place, masked or not."""

    def policy_losses(self, experience, reading):
        return super().policy_losses(experience, reading) + reading.logprobs


class Start(Callback):
    """Keeps what every role was at the start."""

    def on_train_start(self, trainer, pl_module):
        state = torch.nn.Module.state_dict(pl_module)
        self.state = {name: value.clone() for name, value in state.items()}


def with_another_tower(source):
    judge = RewardModel(source)
    with torch.no_grad():
        judge.backbone.role_parameters()["vision"][0].add_(1)
    return judge


def fit(module, data, folder, **options):
    run = trainer(folder, **{"max_steps": 1, "limit_val_batches": 0, **options})
    run.fit(module, data)
    return run


@pytest.fixture
def data(digits, tiny_folder):
    return prompt_data(digits, tiny_folder)


@pytest.fixture(scope="module")
def seen(digits, tiny_folder, tmp_path_factory):
    """An outside algorithm after one iteration on one prompt of each modality."""
    module = on_policy(Seen, tiny_folder, minibatch_size=8, rows_at_once=3)
    run = fit(module, prompt_data(digits, tiny_folder), tmp_path_factory.mktemp("seen"))
    return module, run


def test_the_ratio_is_one_before_the_first_step_for_every_modality(seen):
    experience, reading = seen[0].first
    assert sorted(seen[0].experience_seen.rollout.modality.unique().tolist()) == [*range(len(MODALITIES))]
    ratio = (reading.logprobs - experience.logprobs)[experience.response_mask].exp()
    assert (ratio - 1).abs().max() < SAME
    assert seen[1].logged_metrics["train/first_ratio"] == pytest.approx(1, abs=SAME)


def test_masked_tokens_get_a_gradient_of_exactly_zero(digits, tiny_folder, tmp_path):
    sampling = Sampling(n=2, max_tokens=6, stop_tokens=tuple(range(0, 200, 2)))  # ends early, often
    module = on_policy(Everywhere, tiny_folder, sampling=sampling, minibatch_size=8)
    fit(module, prompt_data(digits, tiny_folder), tmp_path)
    experience, reading = module.first
    assert not experience.response_mask.all()
    assert (reading.logprobs.grad[~experience.response_mask] == 0).all()
    assert (reading.logprobs.grad[experience.response_mask] != 0).any()


@pytest.mark.slow
def test_an_algorithm_from_outside_learns_what_is_rewarded(digits, tiny_folder, tmp_path):
    module = on_policy(
        Seen, tiny_folder, optimizer=partial(AdamW, lr=5e-3), sampling=Sampling(n=8, max_tokens=4)
    )
    scores = []
    module.report = lambda experience, tally: scores.append(experience.scores.mean().item())
    fit(module, prompt_data(digits, tiny_folder), tmp_path, max_steps=6)
    assert scores[-1] > scores[0] + 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_is_bit_identical_and_the_rest_moves(kind, data, tiny_folder, tmp_path):
    module = on_policy(kind, tiny_folder, **judged(tiny_folder))
    start = Start()
    run = fit(module, data, tmp_path, max_steps=2, callbacks=[start])
    before = start.state
    parameters = module.named_parameters(remove_duplicate=False)  # a tied head has two names
    trained = {name for name, parameter in parameters if parameter.requires_grad}
    after = {**module.reference.state_dict(prefix="reference."), **module.state_dict()}
    after |= module.reward_model.state_dict(prefix="reward_model.")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == trained
    assert run.global_step == 2


def test_reference_and_reward_model_are_not_in_the_checkpoint(data, tiny_folder, tmp_path):
    module = on_policy(PPOModule, tiny_folder, **judged(tiny_folder))
    fit(module, data, tmp_path)
    assert {name.split(".")[0] for name in module.state_dict()} == {"policy", "critic"}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    "kind", [kind if kind is PPOModule else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_run_that_was_killed_and_resumed_ends_bit_identical(kind, digits, tiny_folder, tmp_path):
    def build():
        return on_policy(
            kind,
            tiny_folder,
            kl=AdaptiveKL(0.05, target=0.01, horizon=20),
            score_scale=DomainScale(),
            scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
            **judged(tiny_folder),
        )

    whole = build()
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    run = fit(
        whole,
        prompt_data(digits, tiny_folder, batch_size=2),
        tmp_path,
        max_steps=4,
        max_epochs=4,
        callbacks=[saver],
        enable_checkpointing=True,
    )
    resumed = build()
    torch.manual_seed(99)
    options = {"callbacks": [ModelCheckpoint(tmp_path / "saved again", every_n_train_steps=1)]}
    options |= {"max_steps": 4, "max_epochs": 4, "limit_val_batches": 0, "enable_checkpointing": True}
    again = trainer(tmp_path / "again", **options)
    path = str(tmp_path / "saved/step=2.ckpt")
    again.fit(resumed, prompt_data(digits, tiny_folder, batch_size=2), ckpt_path=path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert again.global_step == run.global_step == 4
    same = [name for name in run.logged_metrics if "seconds" not in name and "memory" not in name]
    assert {name: run.logged_metrics[name] for name in same} == {
        name: again.logged_metrics[name] for name in same
    }
    assert resumed.kl.coef == whole.kl.coef != 0.05
    assert resumed.score_scale.moments == whole.score_scale.moments


def test_a_score_that_is_no_number_counts_nowhere(data, tiny_folder, tmp_path):
    module = on_policy(RLOOModule, tiny_folder, verifiers=[WeightedVerifier(Nothing([1, 2]))])
    run = fit(module, data, tmp_path)
    assert run.logged_metrics["train/bad_scores"] == pytest.approx(2 / 8)
    assert run.logged_metrics["train/score"] == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_scores_none_of_which_is_a_number_end_the_run(data, tiny_folder, tmp_path):
    module = on_policy(RLOOModule, tiny_folder, verifiers=[WeightedVerifier(Nothing(slice(None)))])
    with pytest.raises(InputError, match="no answer has a score that is a number"):
        fit(module, data, tmp_path)


def test_in_its_warm_up_the_critic_learns_alone_and_iterations_are_counted(data, tiny_folder, tmp_path):
    start = Start()
    module = on_policy(PPOModule, tiny_folder, critic_warmup=1, epochs=3, stop_kl=0.0)
    run = fit(module, data, tmp_path, callbacks=[start])
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, start.state[name])}
    assert {name.split(".")[0] for name in moved} == {"critic"}
    assert run.global_step == 1


def test_passes_end_early_once_the_policy_has_moved_too_far(data, tiny_folder, tmp_path):
    module = on_policy(RLOOModule, tiny_folder, epochs=5, stop_kl=1e-12, minibatch_size=4)
    steps = []
    update = module.update
    module.update = lambda tally, is_last: (steps.append(is_last), update(tally, is_last=is_last))
    run = fit(module, data, tmp_path)
    assert steps == [False, True]  # of 8 answers in minibatches of 4, one pass
    assert run.global_step == 1


def test_each_picture_is_encoded_once_for_all_roles(data, tiny_folder, tmp_path, monkeypatch):
    looks = []
    encode = Backbone.encode
    monkeypatch.setattr(Backbone, "encode", lambda self, prompts: looks.append(1) or encode(self, prompts))
    fit(on_policy(PPOModule, tiny_folder, **judged(tiny_folder)), data, tmp_path)
    assert len(looks) == 1


def test_a_reward_model_with_another_tower_looks_for_itself(data, tiny_folder, tmp_path, monkeypatch):
    module = on_policy(RLOOModule, tiny_folder, reward_model=partial(with_another_tower, str(tiny_folder)))
    fit(module, data, tmp_path)
    assert module.eyes == {"policy": "policy", "reference": "policy", "reward_model": "reward_model"}


def test_validation_answers_fixed_prompts_in_both_ways_and_says_what_is_right(data, tiny_folder, tmp_path):
    module = on_policy(RLOOModule, tiny_folder, correctness=ExactMatch())
    results = trainer(tmp_path).validate(module, data, verbose=False)[0]
    for way in ("greedy", "sampled"):
        assert 0 <= results[f"val/{way}_score"] <= 1
        assert 0 <= results[f"val/{way}_correct"] <= 1
        assert 1 <= results[f"val/{way}_length"] <= 5


def test_a_step_counts_the_tokens_that_it_read(data, tiny_folder, tmp_path):
    """Those of real prompts once and of all their answers: what a rate of tokens is made of."""

    class Counts(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.prompts, self.told = int(batch.prompts.mask.sum()), int(outputs["tokens"])

    counts = Counts()
    run = fit(on_policy(RLOOModule, tiny_folder), data, tmp_path, callbacks=[counts])
    answers = round(float(run.logged_metrics["train/length"]) * 2 * 4)  # two answers to each of four prompts
    assert counts.told == counts.prompts + answers


def test_every_promised_name_is_logged(data, tiny_folder, tmp_path):
    run = fit(on_policy(PPOModule, tiny_folder, **judged(tiny_folder)), data, tmp_path)
    names = (
        "score reward kl kl_coef entropy policy_loss ratio first_ratio clip_fraction approximate_kl length"
    )
    names += " ended bad_scores peak_memory_gb value_loss explained_variance seconds/roll_out seconds/learn"
    assert {f"train/{name}" for name in names.split()} <= set(run.logged_metrics)
    assert any(name.startswith("train/domain_score/") for name in run.logged_metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verifiers": None}, "nothing earns reward"),
        ({"epochs": 0}, "epochs is 0"),
        ({"minibatch_size": 0}, "minibatch_size is 0"),
        ({"critic": partial(Backbone, "nowhere")}, "the critic has no optimiser"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message, tiny_folder):
    with pytest.raises(InputError, match=message):
        on_policy(RLOOModule, tiny_folder, **options)


def test_a_policy_without_a_language_head_is_refused(tiny_folder):
    module = on_policy(RLOOModule, tiny_folder)
    module.build_policy = partial(Backbone, str(tiny_folder))
    with pytest.raises(InputError, match="no language head"):
        module.configure_model()
