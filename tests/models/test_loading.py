# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: all weights or a message that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ixc_lightning.models.backbone import Backbone
from ixc_lightning.types import InputError
from tests.families import KINDS, build, collate, run

FAMILIES = tuple(KINDS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@pytest.mark.parametrize("head", [False, True])
def test_saved_and_loaded_states_are_equal_bit_for_bit(tiny, family, head, tmp_path):
    it = tiny(family)
    backbone = Backbone(it.folder, head=head).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():  # not what the folder held
            parameter.add_(0.01)
        backbone.save_pretrained(str(tmp_path), extra={"score.weight": torch.full((1, 64), 3.0)})
        batch = collate(it.samples())
        assert torch.equal(run(Backbone(str(tmp_path)).eval(), batch), run(backbone, batch))


@every_family
@pytest.mark.parametrize("head", [False, True])
def test_transformers_loads_a_saved_folder_completely(tiny, family, head, tmp_path):
    Backbone(tiny(family).folder, head=head).save_pretrained(str(tmp_path))
    network, report = tf.AutoModel.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not report["missing_keys"]
    assert all(key.endswith("lm_head.weight") for key in report["unexpected_keys"])
    saved = tiny(family).plain.base_model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())


@every_family
def test_extra_tensors_are_in_the_same_file(tiny, family, tmp_path):
    tiny(family).backbone.save_pretrained(str(tmp_path), extra={"score.weight": torch.arange(64.0)[None]})
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["score.weight"], torch.arange(64.0)[None])


def test_an_extra_tensor_cannot_replace_a_weight(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"norm\.weight would replace"):
        tiny("qwen2").backbone.save_pretrained(tmp_path, extra={"norm.weight": torch.ones(64)})


@every_family
def test_saving_what_was_saved_changes_no_name(tiny, family, tmp_path):
    extra = {"score.weight": torch.ones(1, 64)}
    tiny(family).backbone.save_pretrained(tmp_path / "once", extra=extra)
    Backbone(str(tmp_path / "once")).save_pretrained(tmp_path / "twice", extra=extra)
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys()


def test_large_weights_are_sharded_and_load_again(tiny, tmp_path):
    it = tiny("qwen3_vl")
    it.backbone.save_pretrained(
        str(tmp_path), extra={"score.weight": torch.ones(1, 64)}, max_shard_size="200KB"
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    with safe_open(tmp_path / index["score.weight"], "pt") as file:
        assert torch.equal(file.get_tensor("score.weight"), torch.ones(1, 64))
    batch = collate(it.samples())
    assert torch.equal(run(Backbone(str(tmp_path)).eval(), batch), run(it.backbone, batch))


def test_a_tied_head_is_saved_once_and_tied_again(tmp_path):
    folder = build("qwen3_vl", tmp_path / "tied", tie_word_embeddings=True)
    Backbone(str(folder), head=True).save_pretrained(str(tmp_path / "saved"))
    assert not [key for key in load_file(tmp_path / "saved" / "model.safetensors") if "lm_head" in key]
    network = Backbone(str(tmp_path / "saved"), head=True).model
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_a_missing_language_head_is_refused(tiny, tmp_path):
    tiny("internvl").backbone.save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="no language head"):
        Backbone(str(tmp_path), head=True)


@pytest.mark.parametrize("head", [False, True])
def test_weights_of_another_architecture_are_refused(tiny, head, tmp_path):
    other = Path(tiny("internvl").folder, "config.json").read_text()
    Backbone(tiny("gemma3").folder, head=head).save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(other)
    with pytest.raises(InputError, match=r"do not fit InternVL.*missing.*another architecture") as error:
        Backbone(str(tmp_path), head=head)
    assert str(tmp_path) in str(error.value)


def test_one_missing_weight_is_named(tiny, tmp_path):
    tiny("gemma3").backbone.save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
    save_file(
        {key: value for key, value in weights.items() if key != lost},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=r"1 missing \(language_model\.layers\.1\.mlp\.up_proj\.weight\)"):
        Backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "fault"), [("num_hidden_layers", 1, "left over"), ("intermediate_size", 80, "shape")]
)
def test_a_config_of_another_size_is_refused(tiny, tmp_path, field, value, fault):
    tiny("internvl").backbone.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {field: value, "layer_types": ["full_attention"] * (value if value < 3 else 2)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=fault):
        Backbone(str(tmp_path))


@every_family
def test_random_weights_can_be_built_on_the_meta_device(tiny, family):
    folder = tiny(family).folder
    with torch.device("meta"):
        backbone = Backbone(folder, weights="random")
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    shapes = {name: value.shape for name, value in tiny(family).backbone.state_dict().items()}
    assert {name: value.shape for name, value in backbone.state_dict().items()} == shapes


def test_random_weights_are_fresh(tiny):
    fresh = Backbone(tiny("qwen2").folder, weights="random").model.embed_tokens.weight
    assert not torch.equal(fresh, tiny("qwen2").backbone.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "fast"}, "attention must be one of eager, .*sdpa.*, not 'fast'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, not 'int8'"),
    ],
)
def test_an_unknown_option_is_named(tiny, options, message):
    with pytest.raises(InputError, match=message):
        Backbone(tiny("qwen2").folder, **options)


def test_a_missing_folder_is_named():
    with pytest.raises(InputError, match="no folder '/nowhere/model'"):
        Backbone("/nowhere/model")


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        Backbone(str(tmp_path))
