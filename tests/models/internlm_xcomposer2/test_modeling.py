# SPDX-License-Identifier: Apache-2.0
"""The multi-modal model: generation with a cache, padding, pictures in place, and inputs that are refused."""

from __future__ import annotations

import pytest
import torch

from ixc_lightning.models.internlm_xcomposer2.release import load_released
from ixc_lightning.types import InputError
from tests.models.internlm_xcomposer2.reference import batch_of, byte_processor, inputs, write_released

TOLERANCE = 1e-5
STEPS = 5
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
PROMPTS = {
    "text": ([], "Tell me more"),
    "image": (["land"], "What is it?"),
    "images": (["small", "port"], "First <ImageHere> then <ImageHere>: which?"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_released(tmp_path_factory.mktemp("ixc") / "causal", "causal")
    return load_released(folder, head=True, dtype=torch.float32, attention="sdpa", adapters="keep").eval()


@pytest.fixture(scope="module")
def processor():
    return byte_processor()


def steps(model, batch, **options):
    """Tokens, and the logits of each step."""
    outputs = model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True, **options)
    return outputs.sequences[:, batch["input_ids"].shape[1] :], torch.stack(outputs.logits, dim=1)


@pytest.mark.parametrize("mode", ["base", "write", "web"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_cached_logits_equal_those_of_one_forward_pass(model, processor, kind, mode):
    batch = inputs(*PROMPTS[kind], processor)
    tokens, logits = steps(model, dict(batch), mode=mode)
    prompt = batch["input_ids"].shape[1]
    whole = {**batch, "input_ids": torch.cat((batch["input_ids"], tokens), dim=1)}
    del whole["attention_mask"]
    with torch.no_grad():
        expected = model(**whole, mode=mode).logits[:, prompt - 1 : -1]
    assert (logits - expected).abs().max() < TOLERANCE
    assert torch.equal(expected.argmax(-1), tokens)


def test_a_batch_padded_on_the_left_generates_what_each_row_does_alone(model, processor):
    rows = [inputs(*PROMPTS[kind], processor) for kind in PROMPTS]
    length = max(row["input_ids"].shape[1] for row in rows)
    flipped = [
        {
            **row,
            **{
                name: torch.nn.functional.pad(row[name], (length - row[name].shape[1], 0))
                for name in ("input_ids", "attention_mask")
            },
        }
        for row in rows
    ]
    tokens, logits = steps(model, batch_of(flipped))
    for number, row in enumerate(rows):
        alone, expected = steps(model, dict(row))
        assert tokens[number].tolist() == alone[0].tolist()
        assert (logits[number] - expected[0]).abs().max() < TOLERANCE


def test_encoded_pictures_and_pixels_give_the_same(model, processor):
    batch = inputs(*PROMPTS["images"], processor)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        encoded = model.model.get_image_features(
            batch["pixel_values"], batch["image_grid_hw"], return_dict=True
        )
        given = model(**text, mm_encoder_outputs={"image": encoded}).logits
        assert torch.equal(given, model(**batch).logits)
    assert torch.equal(
        steps(model, {**text, "mm_encoder_outputs": {"image": encoded}})[0], steps(model, batch)[0]
    )


def test_several_samples_of_one_prompt_share_its_pictures(model, processor):
    batch = inputs(*PROMPTS["images"], processor)
    once = steps(model, dict(batch))[0]
    beams = model.generate(**batch, **GREEDY, num_return_sequences=2, num_beams=2)
    assert beams.shape[0] == 2
    assert once.shape == (1, STEPS)


def test_the_gradient_reaches_pixels_separators_and_embeddings(model, processor):
    batch = inputs(*PROMPTS["image"], processor)
    batch["pixel_values"].requires_grad_()
    model.zero_grad()
    model(**batch).logits.square().mean().backward()
    base = model.model
    for tensor in (
        batch["pixel_values"],
        base.multi_modal_projector.global_separator,
        base.multi_modal_projector.row_separator,
        base.language_model.embed_tokens.weight,
    ):
        assert tensor.grad.any()
    # the id of image tokens has an embedding, which nothing uses
    assert not base.language_model.embed_tokens.weight.grad[model.config.image_token_id].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["input_ids"].__setitem__((0, 3), 272), "token id 272 is beyond the vocabulary of 272"),
        (lambda b: b.pop("pixel_values"), "27 image tokens .* but no pixel_values"),
        (lambda b: b.pop("image_grid_hw"), "need image_grid_hw"),
        (
            lambda b: b.update({name: b[name][:, :20] for name in ("input_ids", "attention_mask")}),
            "19 image tokens in input_ids, but the images make 27: was the text cut",
        ),
        (lambda b: b.update(mode="poem"), "mode must be one of base, write, web, not 'poem'"),
    ],
)
def test_what_makes_no_sense_is_refused(model, processor, change, message):
    batch = inputs(*PROMPTS["image"], processor)
    change(batch)
    with pytest.raises(InputError, match=message):
        model(**batch)


def test_grids_that_do_not_account_for_the_tiles_are_refused(model, processor):
    batch = inputs(*PROMPTS["image"], processor)
    batch["image_grid_hw"] = torch.tensor([[3, 2]])
    with pytest.raises(ValueError, match="accounts for 7 tiles, but there are 5"):
        model(**batch)


def test_a_mode_without_its_adapters_is_refused(tmp_path, processor):
    folder = write_released(tmp_path / "causal", "causal")
    model = load_released(folder, head=True, dtype=torch.float32, attention="sdpa")
    batch = inputs(*PROMPTS["text"], processor)
    model(**batch)
    with pytest.raises(InputError, match="mode write needs the adapters sft, dpo"):
        model(**batch, mode="write")


def test_embeddings_with_a_mask_generate_like_ids(model, processor):
    batch = inputs(*PROMPTS["images"], processor)
    with torch.no_grad():
        encoded = model.model.get_image_features(
            batch["pixel_values"], batch["image_grid_hw"], return_dict=True
        )
        embeddings, image_mask, _ = model.model._embed(batch["input_ids"], encoded, is_start=True)
    outputs = model.generate(
        inputs_embeds=embeddings,
        image_mask=image_mask,
        attention_mask=batch["attention_mask"],
        output_logits=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    tokens, logits = steps(model, batch)
    assert torch.equal(outputs.sequences, tokens)
    assert (torch.stack(outputs.logits, dim=1) - logits).abs().max() < TOLERANCE
