# SPDX-License-Identifier: Apache-2.0
"""A network that is built without its weights is, once they are loaded, what it would have been with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.models.late_weights import load_late
from ixc_lightning.models.loading import late_weights_of, weights_later
from ixc_lightning.types import InputError
from tests.families import KINDS, build, collate, run
from tests.models.internlm_xcomposer2.reference import write_released

CPU = torch.device("cpu")
WAYS = {
    "base": {},
    "head": {"head": True, "dtype": "bfloat16"},
    "random": {"weights": "random"},
    "adapter": {"adapter": LoRA(rank=2), "dtype": "bfloat16"},
    "nf4": {"adapter": LoRA(rank=2), "quantisation": "nf4", "head": True},
}


def late(folder, **options):
    """A backbone whose weights were loaded late, and how many of its parameters were not there before."""
    torch.manual_seed(0)
    with weights_later():
        backbone = Backbone(folder, **options)
    awaited = sum(parameter.is_meta for parameter in backbone.parameters())
    load_late(backbone, backbone.model, CPU)
    return backbone, awaited


def whole(folder, **options):
    torch.manual_seed(0)
    return Backbone(folder, **options)


def tensors(backbone):
    """All that it consists of, buffers in no file included, as bytes."""
    named = [*backbone.named_parameters(remove_duplicate=False), *backbone.named_buffers()]
    return {name: (tensor.dtype, tensor.detach().flatten().view(torch.uint8)) for name, tensor in named}


def assert_same(one, other):
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys()
    for name, (dtype, numbers) in one.items():
        assert dtype == other[name][0], name
        assert torch.equal(numbers, other[name][1]), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", KINDS)
def test_every_number_is_that_of_a_network_built_with_its_weights(tiny, family, way):
    folder = tiny(family).folder
    expected = whole(folder, **WAYS[way])
    drawn = torch.rand(1)
    ours, awaited = late(folder, **WAYS[way])
    assert awaited > 20
    assert torch.equal(torch.rand(1), drawn)  # what is drawn later is the same too
    assert_same(ours, expected)
    trained = [[n for n, p in one.named_parameters() if p.requires_grad] for one in (ours, expected)]
    assert trained[0] == trained[1]
    assert late_weights_of(ours.model) is None


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_gradients_are_those_of_a_network_built_with_its_weights(tiny, family):
    """Wrong buffers of positions hardly show in a loss, but in every gradient."""
    batch = collate(tiny(family).samples())
    gradients = []
    for backbone in (whole(tiny(family).folder, freeze=()), late(tiny(family).folder, freeze=())[0]):
        run(backbone.eval(), batch).square().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_tied_head_stays_tied(tmp_path):
    folder = str(build("qwen3_vl", tmp_path, tie_word_embeddings=True))
    backbone, _ = late(folder, head=True)
    network = backbone.model
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert_same(backbone, whole(folder, head=True))


def test_weights_in_several_files_are_found(tiny, tmp_path):
    tiny("qwen3_vl").backbone.save_pretrained(str(tmp_path), max_shard_size="200KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    assert_same(late(str(tmp_path))[0], whole(str(tmp_path)))


def test_weights_in_torch_s_own_format_are_found(tiny, tmp_path):
    tiny("internvl").backbone.save_pretrained(str(tmp_path))
    file = tmp_path / "model.safetensors"
    expected = whole(str(tmp_path))
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    assert_same(late(str(tmp_path))[0], expected)


@pytest.mark.parametrize(("kind", "head"), [("reward", False), ("causal", True), ("causal", False)])
def test_a_released_folder_is_loaded_as_it_is(kind, head, tmp_path):
    folder = str(write_released(tmp_path, kind))
    assert_same(late(folder, head=head)[0], whole(folder, head=head))


def test_a_reward_model_has_its_head_at_once_and_finds_out_about_sharing_later(tiny):
    folder = tiny("internvl").folder
    torch.manual_seed(0)
    expected = RewardModel(folder)
    torch.manual_seed(0)
    with weights_later():
        model = RewardModel(folder)
    assert torch.equal(model.score.weight, expected.score.weight)
    assert expected.shares
    assert not model.shares
    load_late(model, model.backbone.model, CPU)
    model.prepare_sharing()
    assert model.shares
    assert_same(model, expected)


def test_a_missing_weight_is_named(tiny, tmp_path):
    tiny("gemma3").backbone.save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing \(language_model\.layers\.1\.mlp\.up_proj\.weight\)"):
        late(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "fault"), [("num_hidden_layers", 1, "left over"), ("intermediate_size", 80, "shape")]
)
def test_a_config_of_another_size_is_refused(tiny, tmp_path, field, value, fault):
    tiny("internvl").backbone.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {field: value, "layer_types": ["full_attention"] * (value if value < 3 else 2)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=fault):
        late(str(tmp_path))


def test_a_folder_without_weights_is_named(tiny, tmp_path):
    (tmp_path / "config.json").write_text(Path(tiny("qwen2").folder, "config.json").read_text())
    with pytest.raises(InputError, match=r"holds neither model\.safetensors nor"):
        late(str(tmp_path))
