# SPDX-License-Identifier: Apache-2.0
"""Images in tiles: every recorded size and pixel, and shapes that nobody expects."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2ImageProcessor
from ixc_lightning.models.internlm_xcomposer2.image_processing import to_picture
from ixc_lightning.models.internlm_xcomposer2.tiling import layout, partition, tiles_of
from ixc_lightning.models.internlm_xcomposer2.vision import num_image_tokens
from ixc_lightning.types import InputError
from tests.models.internlm_xcomposer2.reference import TILE, image, meta, read_gzip, recorded

WHITE = 255


def padded_size(width, height, **options):
    """Size of the partitioned image, as the layout says it."""
    place = layout(max(width, height), min(width, height), **options)
    size = [place.width, place.padded_height]
    return size[::-1] if width < height else size


@pytest.mark.parametrize("tile", [56, 560])
def test_every_recorded_size(tile):
    table = read_gzip("hd_sizes")
    assert table["columns"] == ["width", "height", "hd_num", "inference", "training", "grid", "tokens"]
    rows = table[str(tile)]
    for width, height, hd_num, inference, training, grid, tokens in rows:
        options = {"hd_num": hd_num, "tile": tile}
        if inference is None:
            with pytest.raises(InputError, match="less than one pixel high"):
                padded_size(width, height, variant="inference", **options)
            continue
        assert padded_size(width, height, variant="inference", **options) == inference
        assert [inference[1] // tile, inference[0] // tile] == grid
        assert num_image_tokens(*grid, side=tile // 28) == tokens
        if training is not None:
            assert padded_size(width, height, variant="training", **options) == training
    assert len(rows) == 693
    assert sum(row[4] is not None for row in rows) == {56: 0, 560: 126}[tile]


@pytest.mark.parametrize("hd_num", [6, 9])
@pytest.mark.parametrize("name", ["land", "port", "small", "wide"])
def test_every_recorded_pixel(name, hd_num):
    pixels = np.asarray(partition(image(name), hd_num=hd_num, tile=TILE))
    expected = meta()["hd_pixels_sha256"][f"infer.{name}.hd{hd_num}"]
    assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == expected


def test_the_global_view():
    processor = InternLMXComposer2ImageProcessor(tile_size=TILE)
    pixels = processor(image("port"))["pixel_values"]
    assert torch.equal(pixels[:1], recorded()["vision.port.glb"])


def test_tiles_go_row_by_row():
    picture = Image.fromarray(
        np.arange(6, dtype=np.uint8).repeat(4).reshape(2, 3, 2, 2).transpose(0, 2, 1, 3).reshape(4, 6)
    )
    tiles = tiles_of(picture.convert("RGB"), tile=2, mean=[0.0] * 3, std=[1 / 255] * 3)
    assert tiles[1:].mean((1, 2, 3)).round().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("variant", "rows"), [("inference", (0, 50)), ("training", (3, 53))])
def test_padding_is_white_at_the_end_or_on_both_sides(variant, rows, turned):
    size = (100, 45) if not turned else (45, 100)
    picture = partition(Image.new("RGB", size), hd_num=4, tile=56, variant=variant)
    pixels = np.asarray(picture).transpose(1, 0, 2) if turned else np.asarray(picture)
    assert picture.size == ((112, 56) if not turned else (56, 112))
    assert (pixels[rows[0] : rows[1]] == 0).all()
    assert (pixels[rows[1] :] == WHITE).all()
    assert (pixels[: rows[0]] == WHITE).all()


def test_a_portrait_is_flipped_and_not_rotated():
    picture = Image.fromarray(np.zeros((56, 112, 3), np.uint8))
    picture.putpixel((0, 0), (255, 0, 0))
    corner = np.asarray(partition(picture.transpose(Image.Transpose.TRANSPOSE), hd_num=2, tile=56))[0, 0]
    assert corner.tolist() == [255, 0, 0]


def test_training_enlarges_more():
    small = Image.new("RGB", (560, 560))
    assert partition(small, hd_num=9, tile=560).size == (560, 560)
    assert partition(small, hd_num=9, tile=560, variant="training").size == (1120, 1120)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images_fill_a_tile(size):
    outputs = InternLMXComposer2ImageProcessor(tile_size=TILE)(Image.new("RGB", size, "red"))
    assert outputs["pixel_values"].isfinite().all()
    assert outputs["image_grid_hw"].tolist() in ([[1, 1]], [[1, 2]], [[2, 1]])


def test_a_hair_is_refused_with_its_size():
    with pytest.raises(InputError, match="10000 x 10 pixels would be less than one pixel high in 9 tiles"):
        InternLMXComposer2ImageProcessor(tile_size=TILE)(Image.new("RGB", (10000, 10)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    assert to_picture(Image.new("RGB", (4, 4), "red").convert("L" if mode == "I;16" else mode)).mode == "RGB"


def test_what_is_transparent_becomes_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    picture = to_picture(Image.fromarray(pixels))
    assert picture.getpixel((0, 0)) == (10, 20, 30)
    assert picture.getpixel((1, 1)) == (255, 255, 255)
    assert to_picture(pixels).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4, 3)), "must be uint8"),
        (np.zeros((3, 4, 4, 3), np.uint8), "must be uint8 of shape"),
        ("picture.png", "not str"),
        (np.zeros((0, 4, 3), np.uint8), "holds nothing to see"),
    ],
)
def test_what_is_no_picture_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        to_picture(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hd_num": 0}, "hd_num must be at least 1"), ({"variant": "fast"}, "variant must be")],
)
def test_impossible_options_are_refused(options, message, unchecked_shapes):
    with pytest.raises(InputError, match=message):
        InternLMXComposer2ImageProcessor(tile_size=TILE, **options)(image("land"))


def test_several_images_get_fewer_tiles_each():
    processor = InternLMXComposer2ImageProcessor(tile_size=TILE, hd_num=9, hd_num_multiple=2)
    picture = Image.new("RGB", (500, 500))
    assert processor(picture)["image_grid_hw"].tolist() == [[3, 3]]
    assert processor([picture, picture])["image_grid_hw"].tolist() == [[1, 1], [1, 1]]
    assert processor([picture, picture], hd_num_multiple=4)["image_grid_hw"].tolist() == [[2, 2]] * 2
    assert processor(picture, hd_num=4)["image_grid_hw"].tolist() == [[2, 2]]


def test_no_image_is_refused():
    with pytest.raises(InputError, match="no image"):
        InternLMXComposer2ImageProcessor()([])


def test_the_processor_is_saved_and_found_again(tmp_path):
    InternLMXComposer2ImageProcessor(tile_size=112, hd_num=5, variant="training").save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is InternLMXComposer2ImageProcessor
    assert (again.tile_size, again.hd_num, again.variant) == (112, 5, "training")
