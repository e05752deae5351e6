# SPDX-License-Identifier: Apache-2.0
"""Training by adapters: small checkpoints, exact resume, and exports that score alike."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW

from ixc_lightning.cli.checkpoints import export_checkpoint
from ixc_lightning.cli.trainer import run_trainer
from ixc_lightning.functional.masking import join
from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.modules import RewardModule, SFTModule
from ixc_lightning.types import InputError
from tests.cli.commands import words
from tests.digits import instruction_data, preference_data, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

MERGED_TOLERANCE = 1e-5  # float32, W + BA summed before instead of after the product with x
ADAPTER = LoRA(rank=4, alpha=8.0, dropout=0.1)  # dropout, so that resuming needs the random state


def _module(kind, folder, *, optimizer=None, **options):
    torch.manual_seed(0)
    build = (
        partial(RewardModel, str(folder))
        if kind is RewardModule
        else partial(Backbone, str(folder), head=True)
    )
    build = partial(build, **{"adapter": ADAPTER, **options})
    return kind(build, optimizer=optimizer or partial(AdamW, lr=1e-2))


def _data(kind, digits, folder):
    make = preference_data if kind is RewardModule else instruction_data
    return make(digits, folder, val=None)


def _fit(module, digits, tiny_folder, folder, *, epochs, checkpoint=None):
    saver = ModelCheckpoint(folder / "checkpoints", save_last=True)
    options = {"max_steps": -1, "max_epochs": epochs, "callbacks": [saver], "enable_checkpointing": True}
    data = _data(type(module), digits, tiny_folder)
    trainer(folder, **options).fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return str(folder / "checkpoints/last.ckpt")


@pytest.mark.parametrize("quantisation", [None, "nf4"])
@pytest.mark.parametrize("kind", [RewardModule, SFTModule])
def test_training_by_adapters_keeps_the_base_and_resumes_exactly_from_a_small_checkpoint(
    kind, quantisation, digits, tiny_folder, tmp_path
):
    def module():
        return _module(kind, tiny_folder, quantisation=quantisation)

    through = module()
    through.configure_model()
    before = {name: weight.detach().clone() for name, weight in through.named_parameters()}
    _fit(through, digits, tiny_folder, tmp_path / "through", epochs=2)
    for name, weight in through.named_parameters():
        bits = [tensor.detach().flatten().view(torch.uint8) for tensor in (weight, before[name])]
        assert torch.equal(*bits) != (".lora_" in name or name == "model.score.weight"), name

    half = _fit(module(), digits, tiny_folder, tmp_path / "half", epochs=1)
    state = torch.load(half, weights_only=True)["state_dict"]
    small = {name for name in state if ".lora_" in name or ".score" in name}
    assert small == state.keys()
    resumed = module()
    torch.manual_seed(99)  # other fresh adapters, which the checkpoint must replace
    _fit(resumed, digits, tiny_folder, tmp_path / "resumed", epochs=2, checkpoint=half)
    assert all(torch.equal(value, through.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.fixture(scope="module")
def batch(digits, tiny_folder):
    data = preference_data(digits, tiny_folder, eval_batch_size=16)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


@torch.no_grad()
def _scores(model, batch):
    return model.eval()(join(batch.prompts, batch.chosen), model.encode(batch.prompts))


@pytest.mark.parametrize("more", [(), ("--model.model.quantisation", "nf4")], ids=["plain", "nf4"])
def test_a_recipe_takes_adapters_and_its_checkpoint_exports_to_the_same_scores(
    more, batch, digits, tiny_folder, tmp_path
):
    adapters = ("--model.model.adapter.rank", "4", "--model.model.adapter.alpha", "8", *more)
    run = run_trainer(
        words("fit", "reward", tiny_folder, digits, tmp_path, *adapters, "--export.folder", f"{tmp_path}/end")
    )
    expected = _scores(run.model.model, batch)
    export_checkpoint(str(next(tmp_path.rglob("*.ckpt"))), str(tmp_path / "later"))
    for name in ("end", "later"):
        exported = RewardModel.from_pretrained(tmp_path / name)
        assert not [parameter for parameter, _ in exported.named_parameters() if "lora" in parameter]
        assert torch.allclose(_scores(exported, batch), expected, atol=MERGED_TOLERANCE), name
        assert exported.score_std == run.model.model.score_std != 1


def test_a_run_that_saves_adapters_apart_exports_a_folder_that_goes_on(batch, digits, tiny_folder, tmp_path):
    adapters = ("--model.model.adapter.rank", "4", "--model.model.adapter.saved_as", "adapter")
    first = run_trainer(
        words("fit", "reward", tiny_folder, digits, tmp_path, *adapters, "--export.folder", f"{tmp_path}/a")
    )
    expected = _scores(first.model.model, batch)
    assert torch.equal(_scores(RewardModel.from_pretrained(tmp_path / "a"), batch), expected)
    more = ("--export.folder", f"{tmp_path}/b")
    second = run_trainer(words("fit", "reward", tmp_path / "a", digits, tmp_path / "more", *more))
    assert (tmp_path / "b/adapter_model.safetensors").is_file()
    again = RewardModel.from_pretrained(tmp_path / "b")
    assert torch.equal(_scores(again, batch), _scores(second.model.model, batch))
    assert not torch.allclose(_scores(again, batch), expected)


def test_a_quantised_language_model_without_adapters_cannot_be_fine_tuned(digits, tiny_folder, tmp_path):
    module = _module(SFTModule, tiny_folder, adapter=None, quantisation="nf4")
    with pytest.raises(InputError, match="give adapter where quantisation keeps the language model as it is"):
        trainer(tmp_path).fit(module, _data(SFTModule, digits, tiny_folder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_training_with_an_8_bit_optimiser_learns_as_with_adamw_and_resumes_exactly(
    library, digits, tiny_folder, tmp_path
):
    if library == "bitsandbytes":
        from bitsandbytes.optim import AdamW8bit

        optimizer = partial(AdamW8bit, lr=1e-3, min_8bit_size=1)
    else:
        from torchao.optim import AdamW8bit

        optimizer = partial(AdamW8bit, lr=1e-3)

    def module(made=optimizer):
        return _module(RewardModule, tiny_folder, optimizer=made)

    through = module()
    _fit(through, digits, tiny_folder, tmp_path / "through", epochs=2)
    half = _fit(module(), digits, tiny_folder, tmp_path / "half", epochs=1)
    resumed = module()
    _fit(resumed, digits, tiny_folder, tmp_path / "resumed", epochs=2, checkpoint=half)
    assert all(torch.equal(value, through.state_dict()[name]) for name, value in resumed.state_dict().items())
    plain = module(partial(AdamW, lr=1e-3))
    plain.configure_model()
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    _fit(plain, digits, tiny_folder, tmp_path / "plain", epochs=2)
    for name, value in plain.state_dict().items():
        step, difference = value - start[name], value - through.state_dict()[name]
        assert difference.norm() <= 0.3 * step.norm(), name
