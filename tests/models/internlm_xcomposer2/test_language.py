# SPDX-License-Identifier: Apache-2.0
"""The language model against an independent float64 computation, at other sizes than those recorded."""

from __future__ import annotations

import json

import pytest
import torch

from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2TextModel
from ixc_lightning.models.internlm_xcomposer2.language import InternLMXComposer2RotaryEmbedding
from ixc_lightning.models.internlm_xcomposer2.released_config import native_config
from ixc_lightning.models.internlm_xcomposer2.released_keys import entries
from tests.models.internlm_xcomposer2.plain import last_hidden, random_weights
from tests.models.internlm_xcomposer2.reference import FOLDER

FLOAT64_TOLERANCE = 1e-5  # norm, cosines and sines are those of float32
FLOAT32_TOLERANCE = 5e-5
BF16_TOLERANCE = 0.03  # 8 bits of mantissa through two layers, relative norm
ATTENTIONS = (
    "sdpa",
    "eager",
    pytest.param("flex_attention", marks=pytest.mark.slow),  # is compiled
)


def config_of(**changes):
    config = json.loads((FOLDER / "config.json").read_text())
    config["_tiny"] |= {name: changes.pop(name) for name in list(changes) if name in config["_tiny"]}
    return config | changes


def build(config, weights, *, dtype=torch.float64, attention="sdpa"):
    native = native_config(config)
    state = {
        name.removeprefix("language_model."): tensor
        for entry in entries(native, head="score")
        if entry.released.startswith("model.")
        for name, tensor in zip(entry.native, entry.unpack(weights[entry.released]), strict=True)
    }
    model = InternLMXComposer2TextModel._from_config(
        native.text_config, dtype=dtype, attn_implementation=attention
    )
    model.load_state_dict(state)
    return model.eval()


def batch_of(config, lengths=(37, 21)):
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(len(lengths), max(lengths), config["hidden_size"], generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    image_mask = (torch.rand(mask.shape, generator=generator) < 0.5) & mask
    return embeddings, image_mask, mask


VARIANTS = {
    "four key-value heads": {"num_key_value_heads": 4},
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "one key-value head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "active NTK": {"max_position_embeddings": 16},
    "NTK by another factor": {
        "max_position_embeddings": 20,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    },
    "unscaled updates": {"plora_alpha": 8},
    "small rank": {"plora_r": 3, "plora_alpha": 5},
    "three layers": {
        "num_hidden_layers": 3,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "intermediate_size": 80,
    },
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_equal_the_independent_computation(variant, dtype):
    config = config_of(**VARIANTS[variant])
    weights = random_weights(config)
    embeddings, image_mask, mask = batch_of(config)
    with torch.no_grad():
        got = build(config, weights, dtype=dtype)(
            inputs_embeds=embeddings.to(dtype), image_mask=image_mask, attention_mask=mask.long()
        ).last_hidden_state
    want = last_hidden(config, weights, embeddings, image_mask, mask)
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE
    assert (got - want)[mask].abs().max() < tolerance


@pytest.mark.filterwarnings(
    "ignore:_compile flag on create_block_mask:DeprecationWarning"
)  # transformers 5.23
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_implementations_agree(attention):
    config = config_of()
    weights = random_weights(config)
    embeddings, image_mask, mask = batch_of(config)
    with torch.no_grad():
        got = build(config, weights, dtype=torch.float32, attention=attention)(
            inputs_embeds=embeddings, image_mask=image_mask, attention_mask=mask.long()
        ).last_hidden_state
    want = last_hidden(config, weights, embeddings, image_mask, mask)
    assert (got - want)[mask].abs().max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("images", [True, False])
def test_bfloat16_stays_near_float32(images):
    config = config_of()
    weights = random_weights(config)
    embeddings, image_mask, mask = batch_of(config)
    image_mask = image_mask if images else torch.zeros_like(image_mask)
    with torch.no_grad():
        got = build(config, weights, dtype=torch.bfloat16)(
            inputs_embeds=embeddings.bfloat16(), image_mask=image_mask, attention_mask=mask.long()
        ).last_hidden_state
    want = last_hidden(config, weights, embeddings, image_mask, mask)
    assert (got - want)[mask].norm() / want[mask].norm() < BF16_TOLERANCE


def test_a_mask_without_images_equals_no_mask():
    config = config_of()
    model = build(config, random_weights(config))
    embeddings, image_mask, mask = batch_of(config)
    with torch.no_grad():
        states = [
            model(inputs_embeds=embeddings.double(), image_mask=images).last_hidden_state
            for images in (None, torch.zeros_like(image_mask), image_mask)
        ]
    assert torch.equal(states[0], states[1])
    assert (states[0] - states[2])[mask].abs().max() > 0.1


def test_padding_on_the_left_changes_no_state_even_where_the_base_grows():
    config = config_of(max_position_embeddings=16)
    model = build(config, random_weights(config))
    embeddings, image_mask, _ = batch_of(config, lengths=(30,))
    positions = torch.arange(30)[None]
    with torch.no_grad():
        alone = model(inputs_embeds=embeddings.double(), image_mask=image_mask).last_hidden_state
        padded = model(
            inputs_embeds=torch.nn.functional.pad(embeddings, (0, 0, 9, 0)).double(),
            image_mask=torch.nn.functional.pad(image_mask, (9, 0)),
            attention_mask=torch.nn.functional.pad(torch.ones(1, 30), (9, 0)).long(),
            position_ids=torch.nn.functional.pad(positions, (9, 0)),
        ).last_hidden_state
    assert (padded[:, 9:] - alone).abs().max() < 1e-12


def test_a_short_row_is_the_same_after_a_long_one():
    config = config_of(max_position_embeddings=16)
    model = build(config, random_weights(config))
    long, _, _ = batch_of(config, lengths=(60,))
    with torch.no_grad():
        before = model(inputs_embeds=long[:, :20].double()).last_hidden_state
        model(inputs_embeds=long.double())
        after = model(inputs_embeds=long[:, :20].double()).last_hidden_state
    assert torch.equal(before, after)


def test_the_grown_base_by_hand():
    # θ' = 100 · (2 · 24 / 8 − 1)^(4/2) = 2500, so the second frequency is 2500^(−1/2)
    config = native_config(
        config_of(max_position_embeddings=8, rope_theta=100, hidden_size=32, num_attention_heads=8)
    ).text_config
    embed = InternLMXComposer2RotaryEmbedding(config)
    for length, base in ((24, 2500.0), (8, 100.0)):
        cosines, sines = embed(torch.zeros(1, dtype=torch.float64), torch.arange(length)[None])
        angle = torch.tensor((length - 1) * base**-0.5)
        assert cosines[0, -1, 1].item() == pytest.approx(angle.cos().item(), abs=1e-6)
        assert sines[0, -1, 3].item() == pytest.approx(angle.sin().item(), abs=1e-6)


def test_gradient_checkpointing_changes_no_gradient():
    config = config_of()
    weights = random_weights(config)
    embeddings, image_mask, mask = batch_of(config)
    gradients = []
    for checkpointing in (False, True):
        model = build(config, weights).train()
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        states = model(
            inputs_embeds=embeddings.double(),
            image_mask=image_mask,
            attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state
        states[mask].square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == len(list(model.parameters())) - 1  # there are no token ids
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_updates_of_images_reach_no_text_before_them():
    config = config_of()
    model = build(config, random_weights(config))
    embeddings, _, _ = batch_of(config, lengths=(30,))
    image_mask = torch.arange(30)[None] >= 12
    with torch.no_grad():
        plain = model(inputs_embeds=embeddings.double()).last_hidden_state
        states = model(inputs_embeds=embeddings.double(), image_mask=image_mask).last_hidden_state
    changed = (states - plain).abs().amax(-1)[0]
    assert changed[:12].max() == 0
    assert (changed[12:] > 1e-3).all()


def test_dropout_of_the_updates_is_off_unless_asked_for_and_touches_image_tokens_alone():
    native = native_config(config_of(num_hidden_layers=1)).text_config
    embeddings, image_mask, _ = batch_of(config_of(), lengths=(30,))
    for rate, differs in ((0.0, False), (0.5, True)):
        native.plora_dropout = rate
        model = InternLMXComposer2TextModel(native).train()
        one, other = (model.layers[0].mlp(embeddings, image_mask[..., None].float()) for _ in range(2))
        assert (one != other)[image_mask].any().item() is differs
        assert torch.equal(one[~image_mask], other[~image_mask])


def test_a_model_built_on_the_meta_device_computes_the_same_once_it_has_weights():
    config = config_of()
    weights = random_weights(config)
    model = build(config, weights, dtype=torch.float32)
    with torch.device("meta"):
        empty = InternLMXComposer2TextModel(model.config)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert not list(empty.buffers())
    embeddings, image_mask, _ = batch_of(config)
    with torch.no_grad():
        got, want = (
            one.eval()(inputs_embeds=embeddings, image_mask=image_mask).last_hidden_state
            for one in (empty, model)
        )
    assert torch.equal(got, want)
