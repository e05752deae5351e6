# SPDX-License-Identifier: Apache-2.0
"""The reward module trains what it says, logs what it says, and agrees with an outside implementation."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import logsigmoid
from torch.optim import AdamW

from ixc_lightning.datamodules.shard_writer import Manifest
from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import RewardModule, WarmupCosineLR
from ixc_lightning.types import MODALITIES, InputError, PreferenceBatch, Prompts, Responses
from tests.digits import preference_data, trainer

SAME = 1e-5  # float32, sums in another order


def _module(folder, lr=1e-2, **options):
    torch.manual_seed(0)
    return RewardModule(partial(RewardModel, str(folder)), optimizer=partial(AdamW, lr=lr), **options)


@pytest.fixture(scope="module")
def trained(digits, tiny_folder, tmp_path_factory):
    """A module trained for two steps and validated, its state before training, and the trainer."""
    module, folder = _module(tiny_folder), tmp_path_factory.mktemp("run")
    module.configure_model()
    before = copy.deepcopy(module.model.state_dict())
    run = trainer(folder, max_steps=2, val_check_interval=2)
    run.fit(module, preference_data(digits, tiny_folder))
    return module, before, run


def test_training_moves_language_model_and_head_and_leaves_the_frozen_parts_bit_identical(trained):
    module, before, _ = trained
    frozen = {name for name, parameter in module.model.named_parameters() if not parameter.requires_grad}
    assert any("vision" in name for name in frozen)
    assert any("projector" in name for name in frozen)
    for name, parameter in module.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_every_promised_name_is_logged(trained, digits):
    names = set(trained[2].logged_metrics)
    moments = {f"{side}_{moment}" for side in ("chosen", "rejected", "score") for moment in ("mean", "std")}
    expected = {"loss", "accuracy", "margin", "length_correlation", "longer_wins", *moments}
    expected |= {f"modality_accuracy/{name}" for name in MODALITIES}
    domains = Manifest.load(digits / "preference/heldout").domains
    assert domains
    expected |= {f"domain_accuracy/{name}" for name in domains}
    assert {f"val/{name}" for name in expected} <= names
    assert {
        "train/loss",
        "train/accuracy",
        "train/margin",
        "train/length_correlation",
        "train/gradient_norm",
    } <= names


def test_validation_stores_the_moments_of_its_scores_with_the_model(trained):
    module, _, run = trained
    assert module.model.score_mean.item() == pytest.approx(
        run.logged_metrics["val/score_mean"].item(), abs=SAME
    )
    assert module.model.score_std.item() == pytest.approx(
        run.logged_metrics["val/score_std"].item(), abs=SAME
    )
    assert module.model.score_std != 1


def test_the_logged_loss_is_the_equation_on_separately_scored_responses(trained, digits, tiny_folder):
    module, _, run = trained
    data = preference_data(digits, tiny_folder, eval_batch_size=16)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    model = module.model.eval()
    with torch.no_grad():
        chosen, rejected = (
            model(join(batch.prompts, responses), model.encode(batch.prompts))
            for responses in (batch.chosen, batch.rejected)
        )
    expected = -logsigmoid(chosen - rejected).mean()
    assert run.logged_metrics["val/loss"].item() == pytest.approx(expected.item(), abs=SAME)
    assert run.logged_metrics["val/accuracy"].item() == pytest.approx(
        (chosen > rejected).float().mean().item()
    )


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_four_pairs_are_learnt_by_heart(digits, tiny_folder, tmp_path):
    module = _module(tiny_folder, lr=3e-3)
    data = preference_data(digits, tiny_folder, batch_size=4, val=None)
    run = trainer(tmp_path, max_steps=40, overfit_batches=1)
    run.fit(module, data)
    assert run.logged_metrics["train/accuracy"] == 1
    assert run.logged_metrics["train/loss"] < 0.1


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_training_ended_and_resumed_between_epochs_equals_training_through(digits, tiny_folder, tmp_path):
    def fit(name, epochs, checkpoint=None):
        module = _module(tiny_folder)
        saver = ModelCheckpoint(tmp_path / name / "checkpoints", save_last=True)
        run = trainer(
            tmp_path / name, max_steps=-1, max_epochs=epochs, callbacks=[saver], enable_checkpointing=True
        )
        run.fit(
            module, preference_data(digits, tiny_folder, val=None), ckpt_path=checkpoint, weights_only=True
        )
        return module.model.state_dict(), str(tmp_path / name / "checkpoints/last.ckpt")

    through, _ = fit("through", 2)
    _, half = fit("half", 1)
    resumed, _ = fit("resumed", 2, checkpoint=half)
    assert all(torch.equal(resumed[name], through[name]) for name in through)


def test_the_schedule_is_stepped_with_the_optimiser(digits, tiny_folder, tmp_path):
    module = _module(tiny_folder, scheduler=partial(WarmupCosineLR, total_steps=2))
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, preference_data(digits, tiny_folder, val=None))
    assert run.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]


def test_training_statistics_cover_every_batch_that_a_step_accumulates(digits, tiny_folder, tmp_path):
    module, counted = _module(tiny_folder), []
    log = module._log_statistics

    def count(phase):
        counted.append(sum(map(len, module.statistics[phase].scores)))
        return log(phase)

    module._log_statistics = count
    run = trainer(tmp_path, max_steps=2, accumulate_grad_batches=3)
    run.fit(module, preference_data(digits, tiny_folder, val=None))
    assert counted == [3 * 8, 3 * 8]


def test_a_step_over_batches_by_tokens_counts_all_their_pairs(digits, tiny_folder, tmp_path):
    module, seen = _module(tiny_folder), []
    score = module.score

    def counted(batch):
        seen.append(len(batch.keys))
        return score(batch)

    module.score = counted
    data = preference_data(
        digits, tiny_folder, val=None, token_budget=300, lengths_folder=str(tmp_path / "lengths")
    )
    run = trainer(tmp_path, max_steps=1, accumulate_grad_batches=3)
    run.fit(module, data)
    assert run.logged_metrics["train/pairs_per_step"] == sum(seen)


def test_a_budget_that_counts_shared_prompts_is_refused_where_none_is_shared(digits, tiny_folder, tmp_path):
    build = partial(RewardModel, str(tiny_folder), sharing="off")
    module = RewardModule(build, optimizer=partial(AdamW, lr=1e-3))
    options = {"val": None, "token_budget": 2000, "lengths_folder": str(tmp_path / "lengths")}
    with pytest.raises(InputError, match=r"set data\.sharing to off"):
        trainer(tmp_path).fit(module, preference_data(digits, tiny_folder, **options))
    trainer(tmp_path).fit(module, preference_data(digits, tiny_folder, sharing="off", **options))


def test_a_checkpoint_of_another_architecture_is_refused_by_name(
    trained, digits, tiny_folder, tiny, tmp_path
):
    trained[2].save_checkpoint(tmp_path / "digits.ckpt")
    other = _module(tiny("qwen2").folder)
    with pytest.raises(InputError, match="another architecture"):
        trainer(tmp_path).fit(
            other,
            preference_data(digits, tiny_folder, val=None),
            ckpt_path=tmp_path / "digits.ckpt",
            weights_only=True,
        )


def test_freezing_everything_is_refused(digits, tiny_folder, tmp_path):
    module = _module(tiny_folder)
    module.configure_model()
    module.model.requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        trainer(tmp_path).fit(module, preference_data(digits, tiny_folder, val=None))


def _text_pairs():
    """Three prompts with two responses each, as ids that no tokenizer was asked for."""
    generator = torch.Generator().manual_seed(5)

    def row(length):
        return torch.randint(40, 60, (length,), generator=generator)

    return [(row(4 + n), row(2 + n), row(5 - n)) for n in range(3)]


def _as_batch(pairs, margin):
    def padded(rows):
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return ids, ids != 0

    prompts, chosen, rejected = (padded(list(rows)) for rows in zip(*pairs, strict=True))
    none = torch.zeros(len(pairs), dtype=torch.long)
    return PreferenceBatch(
        Prompts(*prompts, {}, {}),
        Responses(*chosen),
        Responses(*rejected),
        margin,
        none,
        none,
        ["a", "b", "c"],
        none == 0,
        0,
        [],
    )


@pytest.mark.filterwarnings("ignore")  # TRL's own deprecations are not ours
@pytest.mark.parametrize("centre_coef", [0.0, 0.1])
def test_loss_and_gradients_equal_those_of_trl(centre_coef, tiny, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    folder, pairs, margin = tiny("qwen2").folder, _text_pairs(), torch.tensor([0.0, 0.5, 1.0])
    build = partial(RewardModel, folder, pooling="last", freeze=())
    module = RewardModule(build, optimizer=partial(AdamW, lr=1e-3), centre_coef=centre_coef)
    module.configure_model()
    module.model.save_pretrained(tmp_path / "start")
    batch = _as_batch(pairs, margin)
    ours = module.loss(batch, *module.score(batch), batch.real / batch.real.sum())
    ours.backward()

    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start", num_labels=1)
    rows = [
        {"chosen_ids": [*p, *c], "rejected_ids": [*p, *r], "margin": float(m)}
        for (p, c, r), m in zip([[part.tolist() for part in pair] for pair in pairs], margin, strict=True)
    ]
    theirs = RewardTrainer(
        judge,
        RewardConfig(
            str(tmp_path),
            center_rewards_coefficient=centre_coef or None,
            use_cpu=True,
            report_to=[],
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny("qwen2").processor,
    )
    loss = theirs.compute_loss(judge, theirs.data_collator(rows))
    loss.backward()

    assert ours.item() == pytest.approx(loss.item(), abs=SAME)
    expected = dict(judge.named_parameters())
    compared = {"score.weight": module.model.score.weight}
    compared |= {f"model.{name}": p for name, p in module.model.backbone.model.named_parameters()}
    assert compared.keys() == expected.keys()
    for name, parameter in compared.items():
        assert torch.allclose(parameter.grad, expected[name].grad, atol=SAME, rtol=0), name
