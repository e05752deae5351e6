# SPDX-License-Identifier: Apache-2.0
"""Adapters change what they should and nothing else, and what they come to is written and read whole."""

import json

import pytest
import torch
from torch.nn.functional import linear
from transformers import AutoModel, AutoModelForImageTextToText

from ixc_lightning.functional.masking import join
from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.models.adapters import (
    activate,
    adapter_layers,
    adapter_weights,
    add_adapter,
    merged_state,
)
from ixc_lightning.models.internlm_xcomposer2.low_rank import LowRankUpdate
from ixc_lightning.types import InputError, Responses
from tests.families import KINDS, Tiny, collate

MERGED_TOLERANCE = 1e-5  # float32, W + BA summed before instead of after the product with x
FAMILIES = list(KINDS)
QUICK = ("internvl", "internlm_xcomposer2", "qwen2")
WAYS = [
    pytest.param(name, way, marks=() if name in QUICK else pytest.mark.slow)
    for name in FAMILIES
    for way in (None, "nf4")
]


def responses(count: int) -> Responses:
    ids = torch.randint(40, 60, (count, 3), generator=torch.Generator().manual_seed(3))
    return Responses(ids, torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def scores(model: RewardModel, family: Tiny) -> torch.Tensor:
    prompts = collate(family.samples())
    return model.eval()(join(prompts, responses(len(prompts.ids))), model.encode(prompts))


def shaken(model: RewardModel, seed: int = 5) -> RewardModel:
    """The model with adapters and a head that are not what they start from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter_weights(model.backbone.base, "default").values():
            weight.normal_(std=0.1, generator=generator)
    model.store_statistics(0.25, 2.0)
    return model


def adapted(family: Tiny, *, quantisation: str | None = None, **options) -> RewardModel:
    torch.manual_seed(1)
    model = RewardModel(family.folder, adapter=LoRA(rank=2, alpha=4.0, **options), quantisation=quantisation)
    return shaken(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_of_the_decoder_is_adapted_and_nothing_else(name, tiny):
    backbone = Backbone(tiny(name).folder, adapter=LoRA(rank=2))
    inside = {module for layer in backbone.decoder_layers() for module in layer.modules()}
    assert set(adapter_layers(backbone).values()) <= inside
    plain = Backbone(tiny(name).folder)
    own = [update for update in plain.modules() if isinstance(update, LowRankUpdate)]
    not_meant = {module for update in own for module in update.modules()}
    linears = [
        module
        for layer in plain.decoder_layers()
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear) and module not in not_meant
    ]
    assert len(adapter_layers(backbone)) == len(linears) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_new_adapters_change_nothing_bit_for_bit(name, tiny):
    family = tiny(name)
    torch.manual_seed(1)
    plain = RewardModel(family.folder)
    model = RewardModel(family.folder, adapter=LoRA(rank=2))
    model.score.load_state_dict(plain.score.state_dict())
    assert torch.equal(scores(model, family), scores(plain, family))


def test_an_adapted_layer_is_w_plus_alpha_over_r_b_a(tiny):
    torch.manual_seed(0)
    backbone = Backbone(tiny("qwen2").folder, adapter=LoRA(rank=2, alpha=6.0, targets=["q_proj"])).eval()
    (layer, *_) = adapter_layers(backbone).values()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(5, a.shape[1])
    update = 3 * (x.double() @ a.double().T) @ b.double().T  # α/r = 6/2
    expected = linear(x.double(), layer.base_layer.weight.double(), layer.base_layer.bias.double()) + update
    assert torch.allclose(layer(x).double(), expected, atol=MERGED_TOLERANCE)


@pytest.mark.parametrize(("name", "quantisation"), WAYS)
def test_saved_apart_and_loaded_a_model_scores_the_same_bit_for_bit(name, quantisation, tiny, tmp_path):
    family = tiny(name)
    model = adapted(family, quantisation=quantisation, saved_as="adapter")
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, quantisation=quantisation)
    assert torch.equal(scores(loaded, family), scores(model, family))
    assert (loaded.score_mean.item(), loaded.score_std.item()) == (0.25, 2.0)
    names = {path.name for path in tmp_path.iterdir()} - {"README.md"}
    assert names == ({"base_settings.json"} if quantisation else set()) | {
        "adapter_config.json",
        "adapter_model.safetensors",
        "extra.safetensors",
        "reward_model.json",
    }


@pytest.mark.parametrize(("name", "quantisation"), WAYS)
def test_saved_merged_and_loaded_plain_a_model_scores_the_same(name, quantisation, tiny, tmp_path):
    family = tiny(name)
    model = adapted(family, quantisation=quantisation)
    before = scores(model, family)
    plain = RewardModel(family.folder).backbone.base.state_dict()
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert not adapter_layers(loaded)
    assert loaded.backbone.base.state_dict().keys() == plain.keys()
    assert torch.allclose(scores(loaded, family), before, atol=MERGED_TOLERANCE, rtol=MERGED_TOLERANCE)
    assert torch.equal(scores(model, family), before)  # nothing was merged in place
    assert not json.loads((tmp_path / "config.json").read_text()).get("quantization_config")


def test_merging_adds_b_a_to_the_weights_and_leaves_the_others(tiny):
    backbone = adapted(tiny("internvl"), targets=["v_proj"]).backbone
    before = Backbone(tiny("internvl").folder).base.state_dict()
    merged = merged_state(backbone.base, "default")
    assert merged.keys() == before.keys()
    for name, weight in merged.items():
        is_target = name.startswith("language_model.") and name.endswith("v_proj.weight")
        assert torch.equal(weight, before[name]) != is_target, name
    assert all(torch.equal(merged_state(backbone.base, None)[name], before[name]) for name in before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT 0.21 asks for it
def test_transformers_and_peft_load_a_folder_of_adapters(tiny, tmp_path):
    from peft import PeftModel

    family = tiny("internvl")
    model = adapted(family, saved_as="adapter")
    model.save_pretrained(tmp_path)
    sample = family.samples(["image"])[0]
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path).eval()(**sample).last_hidden_state
        by_peft = PeftModel.from_pretrained(AutoModel.from_pretrained(family.folder), tmp_path).eval()
        also = by_peft(**sample).last_hidden_state
        prompts = collate([sample])
        visuals = model.encode(prompts)
        ours = model.eval().backbone(prompts.ids, prompts.mask, prompts.token_types, visuals)
    assert torch.allclose(theirs, ours, atol=MERGED_TOLERANCE)
    assert torch.allclose(also, ours, atol=MERGED_TOLERANCE)


def test_a_policy_s_adapters_load_with_its_language_head_and_without(tiny, tmp_path):
    family = tiny("qwen2_5_vl")
    policy = Backbone(family.folder, head=True, adapter=LoRA(rank=2, saved_as="adapter")).eval()
    with torch.no_grad():
        for weight in adapter_weights(policy.base, "default").values():
            weight.normal_(std=0.1)
    policy.save_pretrained(tmp_path)
    sample = family.samples(["text"])[0]
    ids, mask = sample["input_ids"], sample["attention_mask"].bool()
    with torch.no_grad():
        hidden = policy(ids, mask, {}, None)
        again = Backbone(str(tmp_path), head=True).eval()
        assert torch.equal(again.logits(again(ids, mask, {}, None)), policy.logits(hidden))
        assert torch.equal(Backbone(str(tmp_path)).eval()(ids, mask, {}, None), hidden)
        theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    assert torch.allclose(theirs, policy.logits(hidden), atol=MERGED_TOLERANCE, rtol=MERGED_TOLERANCE)


def test_adapters_of_a_quantised_base_bring_its_quantisation(tiny, tmp_path):
    family = tiny("internvl")
    model = adapted(family, quantisation="nf4", saved_as="adapter")
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.backbone.quantisation == "nf4"
    assert torch.equal(scores(loaded, family), scores(model, family))
    with torch.no_grad():  # unlike those of the base as it is
        (tmp_path / "base_settings.json").unlink()
        assert not torch.allclose(
            scores(RewardModel.from_pretrained(tmp_path), family), scores(model, family)
        )


def test_an_unknown_quantisation_of_a_base_is_named(tiny, tmp_path):
    adapted(tiny("internvl"), saved_as="adapter").save_pretrained(tmp_path)
    (tmp_path / "base_settings.json").write_text('{"quantisation": "int3"}')
    with pytest.raises(InputError, match=r"base_settings\.json: quantisation is 'int3', .* it knows nf4"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("quantisation", [None, "nf4"])
def test_adapters_and_head_alone_are_trained_and_in_the_state(quantisation, tiny):
    model = adapted(tiny("internvl"), quantisation=quantisation).train()
    prompts = collate(tiny("internvl").samples())
    model(join(prompts, responses(len(prompts.ids))), model.encode(prompts)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == with_gradient
    assert all(name == "score.weight" or ".lora_" in name for name in trained)
    assert model.state_dict().keys() == trained | {"score_mean", "score_std"}


def test_a_state_of_adapters_and_head_loads_strictly_and_a_missing_adapter_is_missed(tiny):
    family = tiny("internvl")
    model, other = adapted(family), shaken(adapted(family), seed=6)
    assert not torch.equal(scores(model, family), scores(other, family))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(scores(model, family), scores(other, family))
    state = model.state_dict()
    missing = next(name for name in state if ".lora_B" in name)
    del state[missing]
    with pytest.raises(RuntimeError, match=missing):
        other.load_state_dict(state, strict=True)


@pytest.mark.parametrize("quantisation", [None, "nf4"])
def test_gradients_are_the_same_with_checkpointing(quantisation, tiny):
    family = tiny("internvl")
    prompts = collate(family.samples())

    def gradients(is_checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = RewardModel(
            family.folder,
            adapter=LoRA(rank=2),
            quantisation=quantisation,
            gradient_checkpointing=is_checkpointing,
        )
        shaken(model).train()
        model(join(prompts, responses(len(prompts.ids))), model.encode(prompts)).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-6), name
        assert gradient.abs().max() > 0, name


def test_switching_adapters_keeps_what_is_trained_and_turns_them_off_exactly(tiny):
    family = tiny("qwen2")
    plain = Backbone(family.folder).eval()
    backbone = Backbone(family.folder, adapter=LoRA(rank=2)).eval()
    add_adapter(backbone.base, backbone.decoder_layers(), LoRA(rank=4, targets=["o_proj"]), name="other")
    with torch.no_grad():
        for adapters in ("default", "other"):
            for weight in adapter_weights(backbone.base, adapters).values():
                weight.normal_(std=0.1)
    trained = {name: p.requires_grad for name, p in backbone.named_parameters()}
    ids = torch.randint(40, 60, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    said = {}
    with torch.no_grad():
        for name in ("default", "other", None, "default"):
            activate(backbone.base, name)
            assert {key: p.requires_grad for key, p in backbone.named_parameters()} == trained
            hidden = backbone(ids, mask, {}, None)
            assert torch.equal(said.setdefault(name, hidden), hidden)
        assert torch.equal(said[None], plain(ids, mask, {}, None))
    assert not torch.allclose(said["default"], said["other"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "adapter.rank is 0, but must be at least 1"),
        ({"alpha": 0.0}, "adapter.alpha is 0.0, but must be above 0"),
        ({"dropout": 1.0}, "adapter.dropout is 1.0"),
        ({"targets": []}, "adapter.targets is"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LoRA(**settings)


def test_a_target_that_is_no_linear_layer_of_the_decoder_is_refused_with_those_there_are(tiny):
    with pytest.raises(InputError, match=r"targets: wqkv, fc1 is no linear layer.* q_proj, up_proj, v_proj"):
        Backbone(tiny("internvl").folder, adapter=LoRA(targets=["q_proj", "wqkv", "fc1"]))


def test_new_adapters_on_a_folder_of_adapters_are_refused(tiny, tmp_path):
    adapted(tiny("qwen2"), saved_as="adapter").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds adapters already"):
        RewardModel(str(tmp_path), adapter=LoRA())


def test_a_tower_that_is_trained_cannot_be_saved_apart(tiny, tmp_path):
    model = RewardModel(tiny("internvl").folder, freeze=["projector"], adapter=LoRA(saved_as="adapter"))
    with pytest.raises(InputError, match="vision are trained as a whole"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "another kind of adapter than plain LoRA .LOHA."),
        ({"use_dora": True}, "another kind of adapter"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"r": 3}, "missing, left over or of another shape"),
        ({"target_modules": ["nothing"]}, "do not fit Qwen2Model"),
        ({"base_model_name_or_path": "/nowhere"}, "there is no folder '/nowhere'"),
    ],
)
def test_a_folder_of_adapters_that_does_not_fit_is_refused(change, message, tiny, tmp_path):
    adapted(tiny("qwen2"), saved_as="adapter").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        RewardModel.from_pretrained(tmp_path)


def test_a_folder_of_adapters_without_weights_is_refused(tiny, tmp_path):
    adapted(tiny("qwen2"), saved_as="adapter").save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model.safetensors: export the adapters again"):
        RewardModel.from_pretrained(tmp_path)
