# SPDX-License-Identifier: Apache-2.0
"""Pictures that are one after all, and records around them, for tests that look for duplicates."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import Record
from tests.datamodules.samples import message, pair

SIDE = 96
ENCODER = object.__new__(ChatEncoder)
"""An encoder without a processor: filters that compare ask it for the number of frames alone."""
ENCODER.video_frames = 4


def photo(seed: int) -> Image.Image:
    """A picture with large and small structures: random colours at three scales."""
    rng = np.random.default_rng(seed)
    layers = []
    for cells, strength in ((4, 0.6), (12, 0.3), (SIDE, 0.1)):
        colours = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(strength * np.asarray(colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return Image.fromarray(np.sum(layers, axis=0).astype(np.uint8))


def digit_images(count: int) -> list[Image.Image]:
    """Handwritten digits as the data set of the quickstart shows them: all of one layout."""
    return [
        Image.fromarray((pixels * 15.9).astype(np.uint8))
        .resize((64, 64), Image.Resampling.BICUBIC)
        .convert("RGB")
        for pixels in load_digits().images[:count]
    ]


def drawing(seed: int) -> Image.Image:
    """Thin black lines on white with letters at the corners, as geometry problems have them."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (200, 150), "white")
    corners = [(int(x), int(y)) for x, y in rng.integers((10, 10), (190, 140), (rng.integers(3, 6), 2))]
    pen = ImageDraw.Draw(picture)
    pen.polygon(corners, outline="black")
    for letter, corner in zip("ABCDE", corners, strict=False):
        pen.text(corner, letter, fill="black")
    return picture


def page(seed: int) -> Image.Image:
    """Lines of text on white: every page has the same layout."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (200, 250), "white")
    pen = ImageDraw.Draw(picture)
    for top in range(15, 235, 14):
        words = ("".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(6))
        pen.text((12, top), " ".join(words)[:29], fill="black")
    return picture


def saved(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


COPIES = {
    "jpeg 90": lambda picture: saved(picture, "JPEG", quality=90),
    "jpeg 50": lambda picture: saved(picture, "JPEG", quality=50),
    "webp": lambda picture: saved(picture, "WEBP", quality=75),
    "half": lambda picture: saved(picture.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS)),
    "larger": lambda picture: saved(picture.resize((150, 150), Image.Resampling.BICUBIC), "JPEG", quality=80),
}
"""Ways in which a picture comes back with other pixels."""


def about(data: bytes, question: str = "What is in the picture?", **fields: Any) -> Record:
    """A pair about one picture."""
    turn = message("user", question, (("image", "00.image"),))
    return pair(**{"messages": (turn,), "media": {"00.image": data}, **fields})


def asking(question: str, **fields: Any) -> Record:
    """A pair about a text."""
    return pair(**{"messages": (message("user", question),), **fields})
