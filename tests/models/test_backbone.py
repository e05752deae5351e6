# SPDX-License-Identifier: Apache-2.0
"""Every family against transformers' own pixel route, one sample at a time."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from ixc_lightning.models.backbone import ROLES, Backbone
from ixc_lightning.types import InputError, Prompts
from tests.families import KINDS, assert_close, collate, media_of, of_media, run, sample

GRADIENT_TOLERANCE = 1e-4  # relative to the largest gradient of the tensor
BF16_TOLERANCE = 0.25  # 8 bits of mantissa through two layers, relative norm
DIFFERENT = 1e-3  # what counts as another result

FAMILIES = tuple(KINDS)
PICTURES = tuple(name for name in FAMILIES if "image" in KINDS[name])
CASES = [(name, kind) for name in FAMILIES for kind in KINDS[name]]
PROJECTORS = {
    "qwen2_5_vl": ("visual.merger",),
    "qwen3_vl": ("visual.merger", "visual.deepstack_merger_list"),
    "internvl": ("multi_modal_projector",),
    "llava_onevision": ("multi_modal_projector", "image_newline"),
    "smolvlm": ("connector",),
    "gemma3": ("multi_modal_projector",),
    "internlm_xcomposer2": ("multi_modal_projector",),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_picture_family = pytest.mark.parametrize("family", PICTURES)


def gradients(backbone: Backbone, batch: Prompts) -> dict[str, Tensor]:
    """Gradients of a loss that reads every state; parameters without one are left out."""
    backbone.zero_grad()
    run(backbone, batch)[batch.mask].square().mean().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_encoding_once_equals_the_pixel_route(tiny, family, kind):
    it = tiny(family)
    item = sample(it.processor, kind, seed=7)
    with torch.no_grad():
        assert_close(run(it.backbone, collate([item]))[0], it.expected(item))


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_mixed_batch_equals_the_row_alone(tiny, family, side):
    it = tiny(family)
    items = it.samples()
    batch = collate(items, side=side, extra=3)
    with torch.no_grad():
        states = run(it.backbone, batch)
    for row, item in enumerate(items):
        assert_close(states[row][batch.mask[row]], it.expected(item))


@every_family
def test_permuting_the_rows_permutes_the_states(tiny, family):
    it = tiny(family)
    items = it.samples()
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        states = run(it.backbone, collate(items))
        permuted = run(it.backbone, collate([items[row] for row in order]))
    mask = collate([items[row] for row in order]).mask
    assert_close(permuted[mask], states[order][mask])


@every_family
def test_ids_under_the_mask_do_not_matter(tiny, family):
    it = tiny(family)
    batch = collate(it.samples(), extra=2)
    other = batch._replace(ids=torch.where(batch.mask, batch.ids, 300))  # an ordinary word
    with torch.no_grad():
        assert_close(run(it.backbone, other)[batch.mask], run(it.backbone, batch)[batch.mask])


@every_picture_family
def test_pictures_matter(tiny, family):
    it = tiny(family)
    batch = collate([sample(it.processor, "image", seed=3)])
    swapped = batch._replace(media={**batch.media, "pixel_values": batch.media["pixel_values"].flip(-1)})
    with torch.no_grad():
        assert (run(it.backbone, batch) - run(it.backbone, swapped)).abs().max() > DIFFERENT


@every_family
@pytest.mark.parametrize("head", [False, True])
def test_every_parameter_has_exactly_one_role(tiny, family, head):
    backbone = Backbone(tiny(family).folder, head=head, weights="random")
    roles = backbone.role_parameters()
    assert tuple(roles) == ROLES
    owned = [id(parameter) for parameters in roles.values() for parameter in parameters]
    assert sorted(owned) == sorted(id(parameter) for parameter in backbone.parameters())
    assert all(roles[role] for role in (ROLES if family in PICTURES else ["language"]))


@every_family
@pytest.mark.parametrize("frozen", [("vision", "projector"), ("vision",), ("language",), ()], ids="+".join)
def test_exactly_the_frozen_roles_get_no_gradient(tiny, family, frozen):
    it = tiny(family)
    if frozen == ("language",) and family not in PICTURES:
        pytest.skip("nothing is left to train")
    backbone = Backbone(it.folder, freeze=frozen).train()
    found = gradients(backbone, collate(it.samples()))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    for role, parameters in backbone.role_parameters().items():
        reached = [
            id(parameter) for parameter in parameters if found.get(names[id(parameter)], torch.zeros(1)).any()
        ]
        assert all(parameter.requires_grad == (role not in frozen) for parameter in parameters)
        # towers hold a few tensors behind the layer that is read, which never get a gradient
        assert bool(reached) == (role not in frozen and bool(parameters))


@every_picture_family
def test_the_projector_is_what_the_family_calls_so(tiny, family):
    backbone = tiny(family).backbone
    names = {id(parameter): name for name, parameter in backbone.base.named_parameters()}
    projector = {names[id(parameter)] for parameter in backbone.role_parameters()["projector"]}
    assert projector == {name for name in names.values() if name.startswith(PROJECTORS[family])}


@every_picture_family
def test_frozen_pictures_keep_no_graph(tiny, family):
    it = tiny(family)
    backbone = Backbone(it.folder)
    backbone.model.enable_input_require_grads()  # as adapters do, on the tower's embeddings as well
    visuals = backbone.encode(collate(it.samples(["image"])))
    assert not visuals.features["image"].tokens.requires_grad


@every_picture_family
def test_frozen_roles_stay_in_evaluation_mode(tiny, family):
    backbone = Backbone(tiny(family).folder, weights="random", freeze=("vision",)).train()
    roles = backbone.role_modules()
    inner = {id(part) for module in roles["projector"] for part in module.modules()}
    assert not any(part.training for m in roles["vision"] for part in m.modules() if id(part) not in inner)
    assert all(part.training for m in roles["projector"] + roles["language"] for part in m.modules())
    assert not any(part.training for part in backbone.eval().modules())


def test_an_unknown_role_is_named(tiny):
    with pytest.raises(InputError, match="tower is none of vision, projector, language"):
        Backbone(tiny("internvl").folder, freeze=("tower",))


@every_family
def test_layers_and_blocks_are_found(tiny, family):
    backbone = tiny(family).backbone
    assert [type(layer).__name__.endswith("DecoderLayer") for layer in backbone.decoder_layers()] == [
        True
    ] * 2
    assert len(backbone.vision_blocks()) == (2 if family in PICTURES else 0)
    assert not {id(block) for block in backbone.vision_blocks()} & {id(x) for x in backbone.decoder_layers()}


@every_family
def test_logits_equal_those_of_the_full_model(tiny, family):
    it = tiny(family)
    backbone = Backbone(it.folder, head=True).eval()
    item = sample(it.processor, KINDS[family][-1], seed=5)
    with torch.no_grad():
        assert_close(backbone.logits(run(backbone, collate([item]))), it.plain(**item).logits)


def test_logits_are_soft_capped_where_the_family_does_so(tmp_path):
    config = tf.Gemma2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=32, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    plain = tf.Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    plain.save_pretrained(tmp_path)
    backbone = Backbone(
        str(tmp_path), head=True, attention="eager"
    ).eval()  # sdpa cannot cap attention scores
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        logits = backbone.logits(backbone(ids, torch.ones_like(ids).bool(), {}, None))
        assert_close(logits, plain(ids).logits)
    assert 1 < logits.abs().max() <= 2


def test_logits_without_a_head_say_what_to_do(tiny):
    with pytest.raises(InputError, match="head=True"):
        tiny("internvl").backbone.logits(torch.zeros(1, 2, 64))


def test_without_a_head_none_is_in_memory(tiny):
    backbone = tiny("internvl").backbone
    assert not [name for name, _ in backbone.named_parameters() if "lm_head" in name]


@every_family
def test_gradient_checkpointing_leaves_the_gradients_alone(tiny, family):
    it = tiny(family)
    batch = collate(it.samples())
    plain = gradients(Backbone(it.folder, freeze=()).train(), batch)
    checkpointed = gradients(Backbone(it.folder, freeze=(), gradient_checkpointing=True).train(), batch)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert_close(
            checkpointed[name], gradient, GRADIENT_TOLERANCE * max(1e-3, gradient.abs().max().item())
        )


@every_family
def test_gradient_checkpointing_computes_layers_again(tiny, family):
    it = tiny(family)
    backbone = Backbone(it.folder, gradient_checkpointing=True).train()
    calls: list[nn.Module] = []
    # before the forward, because computing again stops at the last tensor that is needed
    backbone.decoder_layers()[0].mlp.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    gradients(backbone, collate(it.samples(["text"])))
    assert len(calls) == 2


@every_picture_family
def test_gradient_checkpointing_grows_no_graph_through_a_frozen_tower(tiny, family):
    it = tiny(family)
    backbone = Backbone(it.folder, freeze=("vision",), gradient_checkpointing=True).train()
    states: list[Tensor] = []
    backbone.vision_blocks()[-1].register_forward_hook(lambda module, inputs, output: states.append(output))
    run(backbone, collate(it.samples(["image"])))
    assert states
    assert not any(state.requires_grad for state in states)


@every_family
def test_bfloat16_weights_give_nearly_the_same_states(tiny, family):
    it = tiny(family)
    batch = collate(it.samples())
    with torch.no_grad():
        states = run(Backbone(it.folder, dtype="bfloat16").eval(), batch)
        wanted = run(it.backbone, batch)
    assert states.dtype == torch.bfloat16
    error = (states.float() - wanted)[batch.mask].norm() / wanted[batch.mask].norm()
    assert error < BF16_TOLERANCE


def test_pixels_are_cast_to_the_type_of_the_weights(tiny, monkeypatch):
    backbone = Backbone(tiny("qwen3_vl").folder, weights="random", dtype="bfloat16")
    media = {"pixel_values": torch.ones(16, 1536), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    seen = {}
    monkeypatch.setattr(backbone.family, "encode", lambda base, media: seen.update(media) or {})
    backbone.encode(of_media(media))
    assert {name: value.dtype for name, value in seen.items()} == {
        "pixel_values": torch.bfloat16,
        "image_grid_thw": torch.int64,
    }


@every_family
def test_eager_attention_gives_the_same_states(tiny, family):
    it = tiny(family)
    batch = collate(it.samples(), extra=2)
    backbone = Backbone(it.folder, attention="eager").eval()
    assert backbone.config.get_text_config()._attn_implementation == "eager"
    with torch.no_grad():
        assert_close(run(backbone, batch)[batch.mask], run(it.backbone, batch)[batch.mask])


def test_the_width_is_that_of_the_language_model(tiny):
    assert tiny("internvl").backbone.hidden_size == 64


def test_an_older_transformers_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tf.InternVLModel, "forward", lambda self, input_ids: None)
    with pytest.raises(InputError, match=r"upgrade to transformers>=5\.23"):
        Backbone(tiny("internvl").folder, weights="random")


def test_media_of_one_sample_are_merged_as_they_are(tiny):
    item = sample(tiny("llava_onevision").processor, "both")
    assert all(torch.equal(collate([item]).media[name], value) for name, value in media_of(item).items())
