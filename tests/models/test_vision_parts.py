# SPDX-License-Identifier: Apache-2.0
"""Pictures encoded part by part are those encoded together, and no part is larger than it may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ixc_lightning.models import RewardModel
from ixc_lightning.models.backbone import Backbone, Visuals
from ixc_lightning.models.critic import Critic
from ixc_lightning.types import InputError, Prompts
from tests.families import KINDS, assert_close, collate, of_media, run

FEATURE_TOLERANCE = (
    1e-5  # float32 products of other shapes, through two layers; the features are of order one
)
GRADIENT_TOLERANCE = 1e-5  # relative to the largest gradient of the tensor, which is summed in another order
SMALLEST = 1e-3  # what a largest gradient counts for at least
PICTURES = tuple(name for name in KINDS if "image" in KINDS[name])
ROOM = {
    "qwen2_5_vl": 56,  # a clip of 48, or pictures of 16 to 32
    "qwen3_vl": 56,
    "internvl": 48,  # three tiles of 4 x 4 patches
    "llava_onevision": 96,  # a clip of six frames, or pictures of three tiles
    "smolvlm": 48,
    "gemma3": 48,
    "internlm_xcomposer2": 96,  # a clip of a global view and five tiles
}
"""Patches at once, enough for more than one picture of each family and for a fraction of the batch."""
SEEN = {"internvl": 17 / 16, "internlm_xcomposer2": 17 / 16}
"""States of the tower per patch, where it has a class token."""
every_picture_family = pytest.mark.parametrize("family", PICTURES)


def tower_passes(backbone: Backbone, batch: Prompts) -> list[int]:
    """How many states the tower's first block was given in each of its passes."""
    passes: list[int] = []
    block = backbone.vision_blocks()[0]
    hook = block.register_forward_pre_hook(
        lambda module, inputs: passes.append(inputs[0].shape[:-1].numel()), prepend=True
    )
    try:
        backbone.encode(batch)
    finally:
        hook.remove()
    return passes


def assert_same(got: Visuals, want: Visuals) -> None:
    """The same kinds, grids and embeddings, in the same order."""
    assert got.features.keys() == want.features.keys()
    assert got.grids.keys() == want.grids.keys()
    for name, grid in want.grids.items():
        assert torch.equal(got.grids[name], grid)
    for kind, features in want.features.items():
        assert got.features[kind].is_list == features.is_list
        assert_close(got.features[kind].tokens, features.tokens, FEATURE_TOLERANCE)
        for mine, whole in zip(got.features[kind].deepstack, features.deepstack, strict=True):
            assert_close(mine, whole, FEATURE_TOLERANCE)


@every_picture_family
@pytest.mark.parametrize("room", ["one picture", "some pictures"])
def test_features_of_parts_are_those_of_the_whole_batch(tiny, family, room):
    it = tiny(family)
    batch = collate(it.samples())
    patches = 1 if room == "one picture" else ROOM[family]
    backbone = Backbone(it.folder, vision_patches_at_once=patches).eval()
    assert_same(backbone.encode(batch), it.backbone.encode(batch))
    assert_close(run(backbone, batch)[batch.mask], run(it.backbone, batch)[batch.mask])


@every_picture_family
def test_the_tower_sees_no_more_patches_at_once_than_it_may(tiny, family):
    it = tiny(family)
    batch = collate(it.samples())
    whole = tower_passes(it.backbone, batch)
    alone = tower_passes(Backbone(it.folder, vision_patches_at_once=1), batch)
    passes = tower_passes(Backbone(it.folder, vision_patches_at_once=ROOM[family]), batch)
    assert len(whole) < len(passes) < len(alone)
    assert sum(passes) == sum(alone) == sum(whole)
    assert max(passes) <= ROOM[family] * SEEN.get(family, 1)


@every_picture_family
def test_gradients_of_a_trained_tower_are_those_of_the_whole_batch(tiny, family):
    it = tiny(family)
    batch = collate(it.samples())
    found = []
    for patches in (None, ROOM[family]):
        backbone = Backbone(it.folder, freeze=(), vision_patches_at_once=patches).train()
        run(backbone, batch)[batch.mask].square().mean().backward()
        found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    whole, parts = found
    tower = backbone.role_parameters()["vision"]
    assert any(p.grad is not None and p.grad.any() for p in tower)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        assert_close(parts[name], gradient, GRADIENT_TOLERANCE * max(SMALLEST, gradient.abs().max().item()))


@pytest.mark.parametrize(("frozen", "passes"), [((), 2), (("vision",), 1), (("vision", "projector"), 1)])
def test_a_part_goes_through_the_tower_again_in_the_backward_pass_if_the_tower_is_trained(
    tiny, frozen, passes
):
    it = tiny("qwen3_vl")
    batch = collate(it.samples(["image"]))
    backbone = Backbone(it.folder, freeze=frozen, vision_patches_at_once=1).train()
    seen: list[int] = []
    backbone.vision_blocks()[0].register_forward_pre_hook(lambda module, inputs: seen.append(1))
    run(backbone, batch).sum().backward()
    assert len(seen) == passes * len(batch.media["image_grid_thw"])


def test_a_trained_tower_keeps_features_alone_for_the_backward_pass(tiny):
    """Twice the pictures are twice the features, and nothing else of theirs is kept."""
    it = tiny("qwen3_vl")
    item = it.samples(["image"])[0]
    kept = {}
    for patches in (None, 1):
        backbone = Backbone(it.folder, freeze=(), vision_patches_at_once=patches).train()
        weights = {id(parameter) for parameter in backbone.parameters()}
        for pictures in (2, 4):
            batch = collate([item] * pictures)
            saved: list[int] = []

            def save(tensor: Tensor, saved: list[int] = saved, weights: set[int] = weights) -> Tensor:
                saved.append(0 if id(tensor) in weights else tensor.nbytes)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
                backbone.encode(batch)
            kept[patches, pictures] = sum(saved)
    assert kept[None, 4] > kept[None, 2] > 0
    assert kept[1, 4] == kept[1, 2] == 0  # joining them keeps nothing, and each part computes itself again


def test_pictures_and_clips_of_a_part_are_chosen_by_hand(tiny):
    """Pictures of 16, 32 and 24 patches and clips of 48 and 32, at most 48 at once."""
    media = {
        "pixel_values": torch.arange(72.0).unsqueeze(1),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 8], [1, 4, 6]]),
        "pixel_values_videos": torch.arange(80.0).unsqueeze(1),
        "video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]]),
        "second_per_grid_ts": torch.ones(2),
    }
    it = tiny("qwen2_5_vl").backbone
    parts = list(it.family.parts(it.base, media, patches=48))
    first, second, *clips = parts
    assert first["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 8]]
    assert first["pixel_values"].flatten().tolist() == list(range(48))
    assert second["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert second["pixel_values"].flatten().tolist() == list(range(48, 72))
    assert [part["pixel_values_videos"].flatten().tolist() for part in clips] == [
        list(range(48)),
        list(range(48, 80)),
    ]


def test_media_in_which_pictures_cannot_be_told_apart_are_refused(tiny, monkeypatch):
    it = tiny("gemma3").backbone
    monkeypatch.setattr(type(it.base), "get_image_features", lambda self, pixel_values, other: None)
    media = {"pixel_values": torch.ones(3, 3, 56, 56), "other": torch.ones(2)}
    with pytest.raises(InputError, match=r"3 pictures of Gemma3Model cannot be told apart in other \(2,\)"):
        list(it.family.parts(it.base, media, patches=1))


def test_a_tower_whose_patches_cannot_be_counted_is_refused(tiny, monkeypatch):
    it = tiny("gemma3").backbone
    monkeypatch.setitem(vars(it.base.config.vision_config), "patch_size", None)
    with pytest.raises(InputError, match="Gemma3Model names no vision patch_size"):
        list(it.family.parts(it.base, {"pixel_values": torch.ones(3, 3, 56, 56)}, patches=1))


def test_less_than_one_patch_is_refused(tiny):
    with pytest.raises(InputError, match="must be at least 1"):
        Backbone(tiny("internvl").folder, weights="random", vision_patches_at_once=0)


def test_a_text_batch_has_no_parts(tiny):
    backbone = Backbone(tiny("internvl").folder, weights="random", vision_patches_at_once=16)
    assert backbone.encode(of_media({})) is None


@pytest.mark.parametrize("role", [RewardModel, Critic])
def test_reward_model_and_critic_hand_it_on(reward_folder, role):
    assert role(str(reward_folder), vision_patches_at_once=64).backbone.vision_patches_at_once == 64
