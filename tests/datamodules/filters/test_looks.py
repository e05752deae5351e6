# SPDX-License-Identifier: Apache-2.0
"""Pictures that are one are found, and pictures of one layout are not taken for one."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ixc_lightning.datamodules.filters._looks import (
    BITS,
    MAX_BITS,
    MAX_SHADE,
    Look,
    LookIndex,
    _bands,
    looks_of,
)
from ixc_lightning.types import InputError
from tests.datamodules.filters.planted import COPIES, SIDE, about, digit_images, drawing, page, photo, saved
from tests.datamodules.samples import pair

FRAMES = 4


def _looks(pictures):
    index = LookIndex()
    for number, picture in enumerate(pictures):
        index.add(Look.of([picture]), number)
    return index


def _look(data):
    return looks_of(about(data), video_frames=FRAMES)[0]


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("kind", ["photos", "digits"])
def test_every_copy_leads_to_its_picture_and_to_no_other(kind, copy):
    pictures = [photo(seed) for seed in range(40)] if kind == "photos" else digit_images(40)
    index = _looks(pictures)
    for number, picture in enumerate(pictures):
        look = _look(COPIES[copy](picture))
        assert list(index.near(look)) == [number]
        assert not index.has_exact(look)


def test_no_two_handwritten_digits_are_one_picture():
    index = LookIndex()
    for number, picture in enumerate(digit_images(1797)):
        look = Look.of([picture])
        assert list(index.near(look)) == []
        index.add(look, number)


@pytest.mark.parametrize("make", [drawing, page])
def test_drawings_and_pages_of_one_layout_are_different_pictures(make):
    index = LookIndex()
    for seed in range(100):
        picture = make(seed)
        look = Look.of([picture])
        assert list(index.near(look)) == []
        index.add(look, seed)
        assert list(index.near(_look(saved(picture, "JPEG", quality=75)))) == [seed]


def test_pictures_that_show_nothing_are_compared_by_their_colour():
    white, cream, red = (Image.new("RGB", (64, 64), colour) for colour in ("#fff", "#fefefd", "#c00"))
    assert Look.of([white]).resembles(Look.of([cream]))
    assert not Look.of([white]).resembles(Look.of([red]))
    assert not Look.of([white]).resembles(Look.of([drawing(0).resize((64, 64))]))


def test_a_copy_that_is_a_little_darker_is_the_same_picture():
    darker = photo(0).point(lambda level: round(0.9 * level))
    looks = [Look.of([photo(0)]), Look.of([darker])]
    assert np.abs(looks[0].thumbnails.astype(int) - looks[1].thumbnails).mean() > MAX_SHADE
    assert looks[0].resembles(looks[1])


def test_pixels_decide_whether_a_picture_is_exactly_the_same():
    picture = photo(0)
    index = _looks([picture])
    assert index.has_exact(_look(saved(picture, "WEBP", lossless=True)))
    changed = picture.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    assert not index.has_exact(_look(saved(changed)))
    assert not index.has_exact(Look.of([picture.resize((SIDE // 2, SIDE * 2))]))


def test_a_picture_in_other_colours_is_another():
    red, green = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 102, 0))
    assert red.convert("L").getpixel((0, 0)) == green.convert("L").getpixel((0, 0))
    assert list(_looks([red]).near(Look.of([green]))) == []


def test_a_small_thing_that_was_changed_makes_another_picture():
    picture = photo(1)
    changed = picture.copy()
    ImageDraw.Draw(changed).rectangle((40, 40, 52, 52), fill=(255, 255, 255))
    looks = [Look.of([picture]), Look.of([changed])]
    assert np.abs(looks[0].thumbnails.astype(int) - looks[1].thumbnails).mean() < 3
    assert not looks[0].resembles(looks[1])


def test_a_clip_is_the_same_only_if_every_frame_is():
    frames = [photo(seed) for seed in range(FRAMES)]
    clip = Look.of(frames)
    assert clip.resembles(Look.of([frame.resize((48, 48)) for frame in frames]))
    assert not clip.resembles(Look.of([*frames[:3], photo(9)]))
    assert not clip.resembles(Look.of(frames[:3]))
    assert not clip.resembles(Look.of([frames[2]]))


def test_every_image_and_clip_of_a_record_has_a_look_in_order():
    record = pair("both")
    assert [len(look.thumbnails) for look in looks_of(record, video_frames=FRAMES)] == [FRAMES, 1]
    assert looks_of(pair("text"), video_frames=FRAMES) == []


def test_a_medium_that_cannot_be_decoded_is_named():
    with pytest.raises(InputError, match=r"s7\.00\.image: cannot be decoded"):
        looks_of(about(saved(photo(0))[:200]), video_frames=FRAMES)


def test_hashes_that_are_near_share_a_piece():
    rng = np.random.default_rng(0)
    for _ in range(200):
        flipped = sum(1 << int(bit) for bit in rng.choice(BITS, MAX_BITS, replace=False))
        value = int.from_bytes(rng.bytes(BITS // 8))
        assert set(_bands(value)) & set(_bands(value ^ flipped))


def test_the_pieces_of_a_hash_are_all_of_it():
    value = (1 << BITS) - 1
    assert sum(piece << start for start, piece in _bands(value)) == value
