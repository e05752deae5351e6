# SPDX-License-Identifier: Apache-2.0
"""Pixels as bytes: the floats made of them on the device are the processor's own, or none are used."""

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from ixc_lightning.datamodules.collate import PreferenceCollator
from ixc_lightning.datamodules.pixels import (
    COLOUR,
    NO_SCALES,
    PIXEL_TOLERANCE,
    Scale,
    find_scales,
    merge_pixels,
    to_floats,
)
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.types import InputError
from tests.datamodules.samples import pair
from tests.digits import preference_data, trainer
from tests.families import KINDS

FEATURE_TOLERANCE = 1e-5  # of order one, from pixels that may differ by their rounding
FRAMES = 4
IN_BYTES = {
    "digits": {"pixel_values": (3, 1, 1)},
    "gemma3": {"pixel_values": (3, 1, 1)},
    "internvl": {"pixel_values": (3, 1, 1)},
    "llava_onevision": {"pixel_values": (1, 3, 1, 1), "pixel_values_videos": (1, 3, 1, 1)},
    "qwen2_5_vl": {"pixel_values": (3 * 2 * 14**2,), "pixel_values_videos": (3 * 2 * 14**2,)},
    "qwen3_vl": {"pixel_values": (3 * 2 * 16**2,), "pixel_values_videos": (3 * 2 * 16**2,)},
}
"""Shape of each map. The patches of Qwen lie in a row, so every place in the row has its own channel."""
IN_FLOATS = [
    "internlm_xcomposer2",  # it resizes after the map, and out of its range
    "qwen2",  # it takes no pictures
    "smolvlm",  # it pads with floats
]
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


@pytest.fixture(scope="module")
def encoder(tiny, tiny_folder):
    def build(name):
        folder = str(tiny_folder) if name == "digits" else tiny(name).folder
        return ChatEncoder(folder, video_frames=FRAMES)

    return build


def kinds(name):
    return KINDS["internvl" if name == "digits" else name]


def batches(encode, contents):
    """The batch of one record of each kind, with floats, and with bytes."""
    records = [pair(content, seed=seed, key=f"s{seed}") for seed, content in enumerate(contents)]
    return [PreferenceCollator(one, ["reading"])(records) for one in (encode, encode.in_bytes())]


@pytest.mark.parametrize("name", IN_BYTES)
def test_the_processors_whose_pixels_are_bytes(name, encoder):
    scales = encoder(name).in_bytes().scales
    assert {key: tuple(scale.mean.shape) for key, scale in scales.items()} == IN_BYTES[name]


@pytest.mark.parametrize("name", IN_FLOATS)
def test_other_processors_are_used_as_they_are(name, encoder):
    one = encoder(name)
    assert one.in_bytes() is one


@pytest.mark.parametrize(
    ("name", "content"), [(name, kind) for name in IN_BYTES for kind in kinds(name) if kind != "text"]
)
def test_the_floats_of_every_kind_of_record_are_the_processors_own(name, content, encoder):
    floats, pixels = batches(encoder(name), [content])
    media = pixels.prompts.media
    assert any(value.dtype == torch.uint8 for value in media.values())
    restored = to_floats(media, encoder(name).in_bytes().scales)
    assert restored.keys() == floats.prompts.media.keys()
    for key, want in floats.prompts.media.items():
        assert restored[key].dtype == want.dtype
        torch.testing.assert_close(restored[key], want, rtol=0.0, atol=PIXEL_TOLERANCE)


@pytest.mark.parametrize("name", IN_BYTES)
def test_a_batch_of_all_kinds_is_the_same_and_so_are_its_features(name, encoder, tiny, tiny_folder):
    floats, pixels = batches(encoder(name), kinds(name))
    media = to_floats(pixels.prompts.media, encoder(name).in_bytes().scales)
    for key, want in floats.prompts.media.items():
        torch.testing.assert_close(media[key], want, rtol=0.0, atol=PIXEL_TOLERANCE)
    network = Backbone(str(tiny_folder)).eval() if name == "digits" else tiny(name).backbone
    with torch.no_grad():
        got, want = (
            network.encode(floats.prompts._replace(media=each)).features
            for each in (media, floats.prompts.media)
        )
    for kind, features in want.items():
        torch.testing.assert_close(got[kind].tokens, features.tokens, rtol=0.0, atol=FEATURE_TOLERANCE)


def test_an_encoder_gives_floats_unless_bytes_are_asked_for(encoder):
    one, record = encoder("digits"), pair("image")
    one.in_bytes()
    assert one(record, record.messages, []).media["pixel_values"].dtype == torch.float32


def test_pixels_of_different_shapes_are_filled_up_with_zeros_behind_the_map():
    scales = {"pixel_values": Scale(torch.tensor([10.0]), torch.tensor([2.0]))}
    one = torch.full((1, 2), 14, dtype=torch.uint8)
    merged = merge_pixels([{"pixel_values": one}, {}, {"pixel_values": one[:, :1]}], scales)
    assert merged["pixel_values"].tolist() == [[2.0, 2.0], [2.0, 0.0]]


def test_pixels_of_one_shape_stay_bytes():
    scales = {"pixel_values": Scale(torch.tensor([10.0]), torch.tensor([2.0]))}
    one = {"pixel_values": torch.full((1, 2), 14, dtype=torch.uint8)}
    merged = merge_pixels([one, one], scales)
    assert merged["pixel_values"].dtype == torch.uint8
    assert to_floats(merged, scales)["pixel_values"].tolist() == [[2.0, 2.0]] * 2


def plain(images, clips):
    """A processor that stacks the corners of pictures, channels first, and takes no clips."""
    if clips:
        raise InputError("pictures only")
    corners = [np.asarray(image)[:30, :30].transpose(2, 0, 1) for image in images]
    return {"pixel_values": torch.from_numpy(np.stack(corners))}


def normal(images, clips):
    pixels = plain(images, clips)["pixel_values"]
    return {"pixel_values": (pixels - torch.tensor(MEAN).view(3, 1, 1)).div(torch.tensor(STD).view(3, 1, 1))}


def test_the_map_is_told_from_pictures():
    scale = find_scales(normal, plain)["pixel_values"]
    assert scale.mean.flatten().tolist() == pytest.approx(MEAN)
    assert scale.std.flatten().tolist() == pytest.approx(STD)
    assert scale.mean.shape == (3, 1, 1)


def padded(images, clips):
    media = normal(images, clips)
    media["pixel_values"][:, :, -1] = 0.0
    return media


def padded_where_several(images, clips):
    return padded(images, clips) if len(images) > 1 else normal(images, clips)


def curved(images, clips):
    pixels = plain(images, clips)["pixel_values"]
    return {"pixel_values": pixels.float().div(255).pow(1.001)}


def renamed(images, clips):
    return {"pixels": normal(images, clips)["pixel_values"]}


def with_sizes(images, clips):
    return {**normal(images, clips), "sizes": torch.tensor([image.size for image in images])}


def half(images, clips):
    return {"pixel_values": normal(images, clips)["pixel_values"].half()}


def takes_no_clips_in_bytes(images, clips):
    return normal(images, []) if images else {"pixel_values_videos": torch.zeros(1, 2)}


@pytest.mark.parametrize(
    "processor",
    [padded, padded_where_several, curved, renamed, with_sizes, half, takes_no_clips_in_bytes],
    ids=lambda processor: processor.__name__,
)
def test_a_processor_that_is_more_than_a_map_is_left_alone(processor):
    assert find_scales(processor, plain) == NO_SCALES


def test_pixels_in_which_channels_are_mixed_are_left_alone():
    def grey(images, clips):
        return plain([Image.merge("RGB", [image.convert("L")] * 3) for image in images], clips)

    def normal_grey(images, clips):
        return {"pixel_values": grey(images, clips)["pixel_values"].float() / 255}

    assert len(set(COLOUR)) == 3
    assert find_scales(normal_grey, grey) == NO_SCALES


class Seen(L.LightningModule):
    """Trains one number, and keeps the media that it sees in each step, as they came and on the device."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.media = {"training": [], "validation": []}

    def training_step(self, batch, batch_idx):
        self.media["training"].append(batch.prompts.media)
        return self.number.square()

    def validation_step(self, batch, batch_idx):
        self.media["validation"].append(batch.prompts.media)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_and_validation_see_the_floats_of_a_loader_without_a_trainer(
    num_workers, digits, tiny_folder, tmp_path, monkeypatch
):
    alone = preference_data(digits, tiny_folder)
    alone.setup("fit")
    expected = {"training": alone.train_dataloader(), "validation": alone.val_dataloader()}
    data, seen, arrived = preference_data(digits, tiny_folder, num_workers=num_workers), Seen(), []
    before = data.on_before_batch_transfer

    def note(batch, dataloader_idx):
        arrived.extend(value.dtype for name, value in batch.prompts.media.items())
        return before(batch, dataloader_idx)

    monkeypatch.setattr(data, "on_before_batch_transfer", note)
    trainer(tmp_path, max_epochs=1, max_steps=-1).fit(seen, data)
    assert set(arrived) == {torch.uint8}
    by_hand = next(iter(data.val_dataloader()))  # the trainer has ended
    assert {value.dtype for value in by_hand.prompts.media.values()} == {torch.float32}
    for stage, loader in expected.items():
        for got, batch in zip(seen.media[stage], loader, strict=True):
            assert got.keys() == batch.prompts.media.keys()
            for key, want in batch.prompts.media.items():
                assert want.dtype == torch.float32
                torch.testing.assert_close(got[key], want, rtol=0.0, atol=PIXEL_TOLERANCE)
