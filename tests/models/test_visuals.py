# SPDX-License-Identifier: Apache-2.0
"""Pictures encoded once: used often, stacked without copies, left as they were."""

from __future__ import annotations

import pytest
import torch

from ixc_lightning.functional.media import merge_media, number_alike
from ixc_lightning.models import Visuals
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.types import InputError
from tests.families import KINDS, assert_close, collate, media_of, of_media, run

GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
GRADIENT_TOLERANCE = 1e-5
"""Relative to the largest entry of a gradient, which is summed in another order."""
SMALLEST = 1e-3  # what a largest gradient counts for at least
FAMILIES = tuple(KINDS)
PICTURES = tuple(name for name in FAMILIES if "image" in KINDS[name])
every_family = pytest.mark.parametrize("family", FAMILIES)
every_picture_family = pytest.mark.parametrize("family", PICTURES)


@every_picture_family
def test_repeated_visuals_equal_encoding_the_stacked_batch(tiny, family):
    it = tiny(family)
    items = it.samples()
    batch, twice = collate(items), collate(items * 2)
    with torch.no_grad():
        visuals = it.backbone.encode(batch)
        assert_close(run(it.backbone, twice, visuals.repeat(2)), run(it.backbone, twice))


@every_picture_family
def test_repeating_visuals_copies_no_features(tiny, family):
    visuals = tiny(family).backbone.encode(collate(tiny(family).samples(["image"])))
    many = visuals.repeat(2).repeat(3)
    assert many.features["image"].tokens is visuals.features["image"].tokens
    tokens = many.encoder_outputs()["image"].pooler_output
    assert {part.data_ptr() for part in tokens} == {visuals.features["image"].tokens.data_ptr()}
    assert len(tokens) == 6


CHOICES = {
    "one row": [1],
    "in another order": [3, 0, 2, 1],
    "with repeats": [2, 2, 0, 2],
    "of any copy": [5, 0, 11, 4],
}


@every_picture_family
@pytest.mark.parametrize("rows", CHOICES.values(), ids=CHOICES)
def test_selected_visuals_equal_encoding_the_rows_alone(tiny, family, rows):
    it = tiny(family)
    items = it.samples()
    batch = collate(items)
    chosen = collate([items[row % len(items)] for row in rows])
    with torch.no_grad():
        visuals = it.backbone.encode(batch).repeat(3)
        selected = visuals.select(torch.tensor(rows))
        assert_close(run(it.backbone, chosen, selected), run(it.backbone, chosen))


@every_picture_family
def test_all_rows_of_a_stacked_batch_are_selected_as_they_are(tiny, family):
    it = tiny(family)
    batch = collate(it.samples())
    with torch.no_grad():
        visuals = it.backbone.encode(batch)
        every = torch.arange(2 * len(batch.ids))
        selected, stacked = visuals.repeat(2).select(every), visuals.repeat(2)
    assert selected.grids.keys() == stacked.grids.keys()
    assert all(torch.equal(selected.grids[name], grid) for name, grid in stacked.grids.items())
    for kind, features in visuals.features.items():
        assert torch.equal(selected.features[kind].tokens, features.tokens.repeat(2, 1))
        assert len(selected.features[kind].deepstack) == len(features.deepstack)


@every_picture_family
def test_a_selection_can_be_selected_from_and_stacked(tiny, family):
    it = tiny(family)
    items = it.samples()
    batch = collate(items)
    with torch.no_grad():
        visuals = it.backbone.encode(batch)
        twice = visuals.select(torch.tensor([2, 1])).select(torch.tensor([1, 0])).repeat(2)
        chosen = collate([items[row] for row in (1, 2, 1, 2)])
        assert_close(run(it.backbone, chosen, twice), run(it.backbone, chosen))


@every_picture_family
def test_rows_of_text_select_nothing(tiny, family):
    it = tiny(family)
    batch = collate(it.samples(["text", "image"]))  # text, picture, picture, text
    visuals = it.backbone.encode(batch)
    assert visuals.select(torch.tensor([0, 3, 4])) is None
    assert visuals.select(torch.tensor([0, 2])) is not None


@every_picture_family
def test_the_gradient_of_a_selected_picture_reaches_its_own_pixels(tiny, family):
    it = tiny(family)
    batch = collate(it.samples(["image"]))
    visuals = it.backbone.encode(batch)
    leaf = visuals.features["image"].tokens.clone().requires_grad_()
    features = {"image": visuals.features["image"]._replace(tokens=leaf)}
    selected = Visuals(features, visuals.grids, counts=visuals.counts).select(torch.tensor([1, 1]))
    selected.features["image"].tokens.sum().backward()
    first = int(visuals.counts["image"][0])
    assert not leaf.grad[:first].any()
    assert torch.equal(leaf.grad[first:], torch.full_like(leaf.grad[first:], 2.0))


def test_visuals_that_do_not_know_their_rows_cannot_be_selected_from(tiny):
    visuals = tiny("internvl").backbone.encode(collate(tiny("internvl").samples(["image"])))
    visuals.counts = None
    with pytest.raises(ValueError, match=r"call located\(\) first"):
        visuals.select(torch.tensor([0]))


def test_visuals_of_other_prompts_are_told(tiny):
    it = tiny("internvl")
    visuals = it.backbone.encode(collate(it.samples(["image"])))
    with pytest.raises(ValueError, match=r"hold \d+ image tokens, but \d+ were encoded"):
        visuals.located(collate(it.samples(["images"])), it.backbone.config)


def _once(samples):
    """The batch of samples, where equal media are held once."""
    numbers = number_alike([media_of(item) for item in samples])
    firsts = [media_of(samples[numbers.index(number)]) for number in sorted(set(numbers))]
    return collate(samples)._replace(media=merge_media(firsts), shows=torch.tensor(numbers))


@every_picture_family
def test_pictures_that_several_rows_show_are_encoded_once_and_give_the_same_states(tiny, family):
    it = tiny(family)
    items = it.samples() * 2  # of all kinds that the family takes
    every, once = collate(items), _once(items)
    with torch.no_grad():
        visuals = it.backbone.encode(once)
        whole = it.backbone.encode(every)
        assert_close(run(it.backbone, once, visuals), run(it.backbone, every, whole))
        rows = torch.tensor([len(items) - 1, 0, 3])
        chosen = collate([items[row] for row in rows])
        assert_close(run(it.backbone, chosen, visuals.select(rows)), run(it.backbone, chosen))
    for kind, features in whole.features.items():
        assert_close(visuals.features[kind].tokens, features.tokens)
    assert all(torch.equal(visuals.grids[name], grid) for name, grid in whole.grids.items())


@every_picture_family
def test_a_trained_tower_learns_from_every_row_that_shows_a_picture(tiny, family):
    it = tiny(family)
    items = it.samples(["image"]) * 2
    gradients = []
    for batch in (collate(items), _once(items)):
        backbone = Backbone(it.folder, freeze=()).train()
        seen = []
        backbone.vision_blocks()[0].register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0].numel())
        )
        run(backbone, batch)[batch.mask].square().mean().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
        gradients[-1]["seen"] = sum(seen)
    every, once = gradients
    assert every.pop("seen") == 2 * once.pop("seen")
    assert once.keys() == every.keys()
    for name, gradient in every.items():
        assert_close(once[name], gradient, GRADIENT_TOLERANCE * max(SMALLEST, gradient.abs().max().item()))


def test_rows_that_cannot_show_the_same_pictures_are_told(tiny):
    it = tiny("internvl")
    one, two = it.samples(["image", "images"])[::2]
    batch = collate([one, two])._replace(media=media_of(one), shows=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="show the same images hold different numbers of image tokens"):
        it.backbone.encode(batch)


@every_picture_family
def test_visuals_survive_being_used(tiny, family):
    it = tiny(family)
    batch = collate(it.samples())
    with torch.no_grad():
        visuals = it.backbone.encode(batch)
        first = run(it.backbone, batch, visuals)
        assert torch.equal(run(it.backbone, batch, visuals), first)


@every_picture_family
def test_generating_from_visuals_equals_generating_from_pixels(tiny, family):
    it = tiny(family)
    items = it.samples()
    batch = collate(items)
    visuals = it.backbone.encode(batch)
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": batch.mask.long(),
        **batch.token_types,
        **visuals.grids,
    }
    for _ in range(2):  # generation must leave the visuals as they were
        tokens = it.plain.generate(**inputs, **GREEDY, mm_encoder_outputs=visuals.encoder_outputs())
        for row, item in zip(tokens[:, batch.ids.shape[1] :], items, strict=True):
            alone = it.plain.generate(**item, **GREEDY)[0, item["input_ids"].shape[1] :]
            assert row.tolist() == alone.tolist()


@every_picture_family
def test_a_text_batch_is_the_same_after_a_picture_batch(tiny, family):
    it = tiny(family)
    text, pictures = collate(it.samples(["text"])), collate(it.samples())
    with torch.no_grad():
        before = run(it.backbone, text)
        run(it.backbone, pictures)
        assert torch.equal(run(it.backbone, text), before)


@every_family
def test_a_text_batch_has_no_visuals(tiny, family):
    assert tiny(family).backbone.encode(of_media({})) is None


def test_a_text_model_refuses_pictures(tiny):
    with pytest.raises(InputError, match=r"text model.*pixel_values"):
        tiny("qwen2").backbone.encode(of_media({"pixel_values": torch.zeros(1, 3, 56, 56)}))


def test_pixels_that_are_bytes_still_are_refused_rather_than_taken_for_brightness(tiny):
    with pytest.raises(InputError, match=r"bytes still.*on_after_batch_transfer"):
        tiny("internvl").backbone.encode(
            of_media({"pixel_values": torch.zeros(1, 3, 56, 56, dtype=torch.uint8)})
        )


def test_a_family_without_clips_refuses_them(tiny):
    with pytest.raises(InputError, match="takes no videos"):
        tiny("gemma3").backbone.encode(of_media({"pixel_values_videos": torch.zeros(1, 4, 3, 56, 56)}))


def test_pictures_without_token_types_are_refused_where_positions_need_them(tiny):
    it = tiny("qwen3_vl")
    with pytest.raises(InputError, match="mm_token_type_ids"):
        run(it.backbone, collate(it.samples())._replace(token_types={}))
