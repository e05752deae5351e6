# SPDX-License-Identifier: Apache-2.0
"""Images as white-padded grids of square tiles: the dynamic partition of InternLM-XComposer2.5, bit by bit.

Only Pillow resizes, so the pixels do not depend on a build of torchvision.
"""

from __future__ import annotations

from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ixc_lightning.types import InputError

Variant = Literal["inference", "training"]

WHITE = (255, 255, 255)
TRAINING_ENLARGEMENT = 1.5


class Layout(NamedTuple):
    """Where a landscape image goes.

    Attributes:
        width: of the resized image, a multiple of the tile.
        height: of the resized image.
        padded_height: the next multiple of the tile.
        top: white rows above the image.
    """

    width: int
    height: int
    padded_height: int
    top: int


def layout(width: int, height: int, *, hd_num: int, tile: int, variant: Variant) -> Layout:
    """The layout of an image that is no higher than wide, in at most ``hd_num`` tiles.

    The image is as wide as the most tiles s with s · ⌈s / ratio⌉ ≤ ``hd_num``, but not wider than the next
    multiple of the tile (``inference``), or that of 1.5 times its width (``training``). Inference pads at the
    bottom, training on both sides.

    Raises:
        InputError: if the image would be no pixel high, or ``hd_num`` is not positive.
    """
    if hd_num < 1:
        raise InputError(f"hd_num must be at least 1, not {hd_num}")
    ratio = width / height
    columns = 1
    while (columns + 1) * ceil((columns + 1) / ratio) <= hd_num:
        columns += 1
    enlargement = TRAINING_ENLARGEMENT if variant == "training" else 1
    columns = min(ceil(enlargement * width / tile), columns)
    new_width = columns * tile
    new_height = int(new_width / ratio)
    if new_height == 0:
        raise InputError(
            f"an image of {width} x {height} pixels would be less than one pixel high in {hd_num} tiles: "
            "crop it, or raise hd_num"
        )
    padded = ceil(new_height / tile) * tile
    return Layout(new_width, new_height, padded, (padded - new_height) // 2 if variant == "training" else 0)


def partition(image: Image.Image, *, hd_num: int, tile: int, variant: Variant = "inference") -> Image.Image:
    """The image resized and padded to whole tiles; a portrait is treated like its transpose.

    Transposing flips over the main diagonal, so a portrait is padded on the right (``inference``).
    """
    turned = image.width < image.height
    if turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    place = layout(image.width, image.height, hd_num=hd_num, tile=tile, variant=variant)
    resized = image.resize((place.width, place.height), Image.Resampling.BILINEAR)
    padded = _pad(resized, (place.width, place.padded_height), top=place.top)
    return padded.transpose(Image.Transpose.TRANSPOSE) if turned else padded


def partition_video(image: Image.Image, *, tile: int) -> Image.Image:
    """The composed frames of a video, one tile wide on the short side, padded to whole ones on the long."""
    turned = image.width < image.height
    if turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    width = int(tile * (image.width / image.height))
    resized = image.resize((width, tile), Image.Resampling.BILINEAR)
    padded = _pad(resized, (ceil(width / tile) * tile, tile))
    return padded.transpose(Image.Transpose.TRANSPOSE) if turned else padded


def grid_of(image: Image.Image, *, tile: int) -> tuple[int, int]:
    """Rows and columns of tiles of a partitioned image."""
    return image.height // tile, image.width // tile


def tiles_of(
    image: Image.Image, *, tile: int, mean: list[float], std: list[float]
) -> Float[Tensor, "tiles 3 side side"]:
    """The global view of a partitioned image, then its tiles row by row, normalised.

    The global view is the whole padded image squeezed to one tile by bicubic interpolation without
    antialiasing, after the normalisation.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    overview = interpolate(pixels[None], size=(tile, tile), mode="bicubic")
    rows, columns = grid_of(image, tile=tile)
    tiles = pixels.view(3, rows, tile, columns, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat((overview, tiles))


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB image; what is transparent becomes white, like the padding."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _pad(image: Image.Image, size: tuple[int, int], *, top: int = 0) -> Image.Image:
    canvas = Image.new("RGB", size, WHITE)
    canvas.paste(image, (0, top))
    return canvas
