# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning trains on the responses, all of them and nothing else."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from ixc_lightning.functional.masking import join
from ixc_lightning.functional.sft import exact_match, predict_tokens, sft_loss
from ixc_lightning.models import Backbone
from ixc_lightning.modules import SFTModule
from ixc_lightning.types import MODALITIES
from tests.digits import instruction_data, trainer

SAME = 1e-5  # float32, sums in another order


def _module(folder, lr=1e-2, **options):
    torch.manual_seed(0)
    build = partial(Backbone, str(folder), head=True, **options)
    return SFTModule(build, optimizer=partial(AdamW, lr=lr))


@pytest.fixture
def module(tiny_folder):
    module = _module(tiny_folder, freeze=())
    module.configure_model()
    return module.eval()


@pytest.fixture(scope="module")
def batch(digits, tiny_folder):
    data = instruction_data(digits, tiny_folder, eval_batch_size=16)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


@pytest.fixture(scope="module")
def trained(digits, tiny_folder, tmp_path_factory):
    """A module trained for two steps and validated, and the trainer."""
    module = _module(tiny_folder, freeze=("vision", "projector"))
    saver = ModelCheckpoint(tmp_path_factory.mktemp("saved"), save_last=True)
    run = trainer(
        tmp_path_factory.mktemp("run"),
        max_steps=2,
        val_check_interval=2,
        callbacks=[saver],
        enable_checkpointing=True,
    )
    run.fit(module, instruction_data(digits, tiny_folder))
    return module, run


def _full_logits(module, batch):
    """The logits of every place, by transformers' own head, and labels that are −100 outside responses."""
    sequences = join(batch.prompts, batch.responses)
    visuals = module.model.encode(batch.prompts)
    hidden = module.model(sequences.ids, sequences.mask, sequences.token_types, visuals)
    return module.model.model.lm_head(hidden), sequences.ids.masked_fill(~sequences.response_mask, -100)


@torch.no_grad()
def test_the_loss_is_that_of_all_logits_with_the_prompt_labelled_away(module, batch):
    loss = sft_loss(module.predict_responses(batch)[0].losses)
    logits, labels = _full_logits(module, batch)
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), abs=SAME)


@torch.no_grad()
def test_a_response_matches_where_every_likeliest_token_is_the_true_one(module, batch):
    logits, labels = _full_logits(module, batch)
    guesses = torch.nn.functional.pad(logits.argmax(dim=-1)[:, :-1], (1, 0))
    expected = ((guesses == labels) | (labels == -100)).all(dim=1)
    predictions, mask = module.predict_responses(batch)
    assert torch.equal(exact_match(predictions.is_likeliest, mask), expected)


def test_what_the_head_says_about_prompt_tokens_gets_no_gradient(module, batch):
    seen = []
    head = module.model.family.logits
    module.model.family.logits = lambda model, hidden: seen.append(hidden) or head(model, hidden)
    sft_loss(module.predict_responses(batch)[0].losses).backward()
    assert [len(hidden) for hidden in seen] == [int(batch.responses.mask.sum())] * 2  # once more backward


def test_no_more_logits_exist_at_a_time_than_a_chunk_has(module, batch, monkeypatch):
    seen = []
    head = module.model.family.logits
    module.model.family.logits = lambda model, hidden: seen.append(len(hidden)) or head(model, hidden)
    monkeypatch.setattr("ixc_lightning.modules.sft.predict_tokens", partial(predict_tokens, chunk=5))
    sft_loss(module.predict_responses(batch)[0].losses).backward()
    tokens = int(batch.responses.mask.sum())
    assert max(seen) == 5 < tokens
    assert sum(seen) == 2 * tokens


def test_training_moves_language_model_and_leaves_the_frozen_parts_bit_identical(trained, tiny_folder):
    before = Backbone(str(tiny_folder), head=True).state_dict()
    frozen = {name for name, parameter in trained[0].model.named_parameters() if not parameter.requires_grad}
    assert any("vision" in name for name in frozen)
    for name, parameter in trained[0].model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_every_promised_name_is_logged(trained):
    expected = {"train/loss", "train/gradient_norm", "val/loss", "val/exact_match"}
    expected |= {f"val/modality_exact_match/{name}" for name in MODALITIES}
    assert expected <= set(trained[1].logged_metrics)


def test_its_checkpoint_loads_without_unpickling(trained):
    path = trained[1].checkpoint_callback.last_model_path
    assert torch.load(path, weights_only=True)["global_step"] == 2


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_four_conversations_are_learnt_by_heart(digits, tiny_folder, tmp_path):
    module = _module(tiny_folder, lr=3e-3, freeze=())
    data = instruction_data(digits, tiny_folder, batch_size=4, val=None)
    run = trainer(tmp_path, max_steps=40, overfit_batches=1)
    run.fit(module, data)
    assert run.logged_metrics["train/loss"] < 0.1
