# SPDX-License-Identifier: Apache-2.0
"""Every recorded number of the released code, from prompt and pixels to scores, tokens and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ixc_lightning.models.internlm_xcomposer2.release import load_released, reward_head
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.types import Prompts, Sequences
from tests.models.internlm_xcomposer2.reference import (
    batch_of,
    byte_processor,
    case,
    inputs,
    recorded,
    write_released,
)

TOLERANCE = 1e-4  # what is promised in float32
FLOAT64_TOLERANCE = 2e-5  # the recording is in float32, which has an error of its own
GRADIENT_TOLERANCE = 1e-4  # relative to the largest entry of the tensor
REWARD_CASES = ("text", "sys", "img", "img2", "imgp", "multi")
DTYPES = (torch.float32, torch.float64)
GRADIENTS = {
    "model.norm.weight": "language_model.norm.weight",
    "model.layers.0.attention.wqkv.Plora_A.weight": (
        "language_model.layers.0.self_attn.qkv_updates.plora.down.weight"
    ),
    "model.layers.1.feed_forward.w2.weight": "language_model.layers.1.mlp.down_proj.weight",
    "plora_glb_GN": "multi_modal_projector.global_separator",
    "plora_sub_GN": "multi_modal_projector.row_separator",
}


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("ixc") / "reward", "reward")


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("ixc") / "causal", "causal")


@pytest.fixture(scope="module")
def processor():
    return byte_processor()


def base(folder, dtype=torch.float32, attention="sdpa"):
    return load_released(folder, head=False, dtype=dtype, attention=attention).eval()


def causal(folder, dtype=torch.float32):
    return load_released(folder, head=True, dtype=dtype, attention="eager", adapters="keep").eval()


def to(values: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def distance(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return (got - want).abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["land", "port"])
def test_image_tokens_before_and_after_the_projector(reward_folder, processor, name, dtype):
    model = base(reward_folder, dtype)
    pixels = to(inputs([name], "", processor), dtype)
    with torch.no_grad():
        encoded = model.get_image_features(pixels["pixel_values"], pixels["image_grid_hw"], return_dict=True)
        states = encoded.last_hidden_state[:, 1:]
        before = model.multi_modal_projector.arrange(states, pixels["image_grid_hw"])
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else TOLERANCE
    assert distance(before[0], recorded()[f"vision.{name}.tokens_pre_proj"][0]) < tolerance
    assert distance(encoded.pooler_output[0], recorded()[f"vision.{name}.tokens"][0]) < tolerance


def test_several_images_in_one_call_equal_each_alone(reward_folder, processor):
    model = base(reward_folder)
    names = ["land", "port", "small"]
    rows = [inputs([name], "", processor) for name in names]
    with torch.no_grad():
        batch = batch_of(rows)
        together = model.get_image_features(batch["pixel_values"], batch["image_grid_hw"], return_dict=True)
        alone = [
            model.get_image_features(row["pixel_values"], row["image_grid_hw"], return_dict=True)
            for row in rows
        ]
    assert [len(tokens) for tokens in together.pooler_output] == [27, 19, 13]
    for got, want in zip(together.pooler_output, alone, strict=True):
        assert distance(got, want.pooler_output[0]) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REWARD_CASES)
def test_hidden_states_and_token_scores(reward_folder, processor, name, dtype, attention):
    about, numbers = case(f"reward.{name}"), recorded()
    model = base(reward_folder, dtype, attention)
    batch = to(inputs(about["images"], about["prompt"], processor), dtype)
    assert batch["input_ids"].shape[1] == about["total_len"]
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True)
    scores = outputs.last_hidden_state @ reward_head(reward_folder).to(dtype)[0]
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else TOLERANCE
    assert distance(scores, numbers[f"reward.{name}.token_logits"]) < tolerance
    assert abs(scores[0, -1].item() - about["score_last_token"]) < tolerance
    assert abs(scores.mean().item() - about["score_mean_all_tokens"]) < tolerance
    if f"reward.{name}.last_hidden" in numbers:
        assert distance(outputs.hidden_states[1], numbers[f"reward.{name}.layer1_hidden"]) < TOLERANCE
        assert distance(outputs.last_hidden_state, numbers[f"reward.{name}.last_hidden"]) < TOLERANCE


@pytest.mark.parametrize("batch", ["batch_mixed", "batch_img", "batch_all"])
def test_batched_scores_through_the_reward_model(reward_folder, processor, batch):
    about = case(f"reward.{batch}")
    model = RewardModel(str(reward_folder)).eval()
    rows = [
        inputs(case(f"reward.{name}")["images"], case(f"reward.{name}")["prompt"], processor)
        for name in about["names"]
    ]
    joined = batch_of(rows)
    mask = joined["attention_mask"].bool()
    media = {name: joined[name] for name in ("pixel_values", "image_grid_hw") if name in joined}
    with torch.no_grad():
        visuals = model.encode(Prompts(joined["input_ids"], mask, {}, media))
        scores = model(Sequences(joined["input_ids"], mask, mask, {}), visuals)
    assert model.pooling == "last"
    assert distance(scores, torch.tensor(about["scores"])) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("chat_text", mode) for mode in ("base", "write", "web")),
        *(("chat_img", mode) for mode in ("base", "write", "web")),
        ("chat_multi", "base"),
    ],
)
def test_logits_in_the_three_modes(causal_folder, processor, name, mode):
    model = causal(causal_folder)
    want = recorded()[f"causal.{name}.logits_last8" + (f".{mode}" if mode != "base" else "")]
    with torch.no_grad():
        got = model(**chat(name, processor), mode=mode, logits_to_keep=8).logits
    assert distance(got, want) < TOLERANCE


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["chat_text", "chat_img", "chat_multi"])
def test_greedy_tokens(causal_folder, processor, name, use_cache):
    batch = chat(name, processor)
    tokens = causal(causal_folder).generate(
        **batch, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=2, use_cache=use_cache
    )
    expected = recorded()[f"causal.{name}.greedy8"][0, 1:]  # the reference puts a start token before them
    assert tokens[0, batch["input_ids"].shape[1] :].tolist() == expected.tolist()


def chat(name: str, processor) -> dict[str, Tensor]:
    about = case(f"causal.{name}")
    turns = [{"role": "user", "content": about["query"]}]
    if name == "chat_text":  # recorded with a system prompt and one earlier round
        turns = [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            *turns,
        ]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    batch = inputs(about["images"], prompt, processor)
    assert batch["input_ids"].shape[1] == about["total_len"]
    return batch


def test_language_loss_of_a_padded_batch(causal_folder):
    numbers = recorded()
    ids, mask, labels = (numbers[f"causal.ids.{name}"] for name in ("input_ids", "attention_mask", "labels"))
    with torch.no_grad():
        outputs = causal(causal_folder)(input_ids=ids, attention_mask=mask, labels=labels)
    kept = mask[:, ::5].bool()
    assert distance(outputs.logits[:, ::5][kept], numbers["causal.ids.logits"][kept]) < TOLERANCE
    assert distance(outputs.loss[None], numbers["causal.ids.loss"]) < TOLERANCE


@pytest.fixture(params=["multi", "text"])
def trained(request, reward_folder, processor):
    """The recorded pairs, and the base model after the backward pass of the pairwise loss."""
    about = case(f"train.{request.param}")
    pairs = list(zip(about["chosen"], about["rejected"], about["images"] or [[], []], strict=True))
    rows = [
        inputs(images, prompt, processor)
        for chosen, rejected, images in pairs
        for prompt in (chosen, rejected)
    ]
    model = base(reward_folder).train()
    score = torch.nn.Parameter(reward_head(reward_folder).clone())
    batch = batch_of(rows)
    hidden = model(**batch).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    scores = hidden[torch.arange(len(last)), last] @ score[0]
    loss = -logsigmoid(scores[::2] - scores[1::2]).mean()
    loss.backward()
    return request.param, scores, loss, {"score.weight": score.grad}, model


def test_pairwise_loss_and_its_gradients(trained):
    name, scores, loss, gradients, model = trained
    numbers = recorded()
    assert distance(scores[:, None], numbers[f"train.{name}.logits"]) < TOLERANCE
    assert distance(loss[None], numbers[f"train.{name}.loss"]) < TOLERANCE
    parameters = dict(model.named_parameters())
    for theirs, ours in GRADIENTS.items():
        gradients[theirs] = parameters[ours].grad
    compared = 0
    for theirs, gradient in gradients.items():
        key = f"train.{name}.grad.{theirs}"
        if key in numbers:
            want = numbers[key]
            assert distance(gradient.view_as(want), want) <= GRADIENT_TOLERANCE * want.abs().max()
            compared += 1
    assert compared == (6 if name == "multi" else 3)


def test_the_gradient_of_the_fused_projection(trained):
    name, _, _, _, model = trained
    key = f"train.{name}.grad.model.layers.0.attention.wqkv.weight"
    if key not in recorded():
        pytest.skip("left out of the recording")
    attention = model.language_model.layers[0].self_attn
    parts = [layer.weight.grad for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    # [key-value head][four query heads, key, value][8 rows each]
    fused = torch.cat([part.view(2, -1, 8, 64) for part in parts], dim=1).flatten(0, 2)
    want = recorded()[key]
    assert distance(fused, want) <= GRADIENT_TOLERANCE * want.abs().max()


def test_the_end_token_is_not_trained_and_the_others_are(trained):
    name, _, _, _, model = trained
    gradient = model.language_model.embed_tokens.weight.grad
    rows = recorded()[f"train.{name}.grad.model.tok_embeddings.weight.rows"]
    want = recorded()[f"train.{name}.grad.model.tok_embeddings.weight"]
    assert gradient.any(1).nonzero().flatten().tolist() == rows.tolist()
    assert 2 not in rows
    assert distance(gradient[rows], want) <= GRADIENT_TOLERANCE * want.abs().max()


def test_without_images_their_updates_get_gradients_of_zero(trained):
    name, _, _, _, model = trained
    # the last layer's output at image tokens is read by nothing
    updates = [p for key, p in model.named_parameters() if "layers.0." in key and ".plora." in key]
    assert len(updates) == 10
    assert [bool(p.grad.any()) for p in updates] == [name == "multi"] * 10
