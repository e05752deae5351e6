# SPDX-License-Identifier: Apache-2.0
"""The image processor: pictures of any size to normalised tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ImagesKwargs

from ixc_lightning.models.internlm_xcomposer2.tiling import Variant, grid_of, partition, tiles_of, to_rgb
from ixc_lightning.types import InputError


class InternLMXComposer2ImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What a call may change; see the processor's arguments."""

    hd_num: int
    hd_num_multiple: int
    variant: str


class InternLMXComposer2ImageProcessor(BaseImageProcessor):
    """Resizes, pads and cuts images as InternLM-XComposer2.5 does.

    Args:
        tile_size: side of a tile in pixels, the vision tower's image size.
        hd_num: most tiles of an image that is alone in its prompt. The release evaluates and trains its
            reward model with 9; its methods ``chat`` and ``get_score`` default to 24.
        hd_num_multiple: most tiles of each of several images in one prompt.
        variant: ``inference``, or ``training``, by which the release trained: images are enlarged more and
            padded on both sides.
        image_mean: subtracted per channel.
        image_std: divided by per channel.
        **kwargs: kept as attributes.
    """

    model_input_names: ClassVar = ["pixel_values", "image_grid_hw"]
    valid_kwargs = InternLMXComposer2ImagesKwargs

    def __init__(
        self,
        *,
        tile_size: int = 560,
        hd_num: int = 9,
        hd_num_multiple: int = 6,
        variant: Variant = "inference",
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if variant not in ("inference", "training"):
            raise InputError(f"variant must be inference or training, not {variant!r}")
        self.tile_size = tile_size
        self.hd_num = hd_num
        self.hd_num_multiple = hd_num_multiple
        self.variant = variant
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(
        self,
        images: Any,
        *,
        hd_num: int | None = None,
        hd_num_multiple: int | None = None,
        variant: Variant | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """The tiles of the images of one prompt.

        Args:
            images: a picture, or a list of pictures: of Pillow, or uint8 arrays (height, width, channels).
            hd_num: in place of the processor's.
            hd_num_multiple: in place of the processor's.
            variant: in place of the processor's.
            return_tensors: the outputs are PyTorch tensors in any case.

        Returns:
            ``pixel_values``: of each image the global view and its tiles (tiles, 3, side, side).
            ``image_grid_hw``: rows and columns of tiles of each image (images, 2).

        Raises:
            InputError: there is no image, one is no picture, or it is too thin.
        """
        pictures = [
            to_picture(image) for image in (images if isinstance(images, (list, tuple)) else [images])
        ]
        if not pictures:
            raise InputError("there is no image to process")
        alone = self.hd_num if hd_num is None else hd_num
        several = self.hd_num_multiple if hd_num_multiple is None else hd_num_multiple
        most = alone if len(pictures) == 1 else several
        parts = [
            partition(picture, hd_num=most, tile=self.tile_size, variant=variant or self.variant)
            for picture in pictures
        ]
        return self.tiles(parts)

    def tiles(self, parts: Sequence[Image.Image]) -> BatchFeature:
        """The outputs for pictures that are whole tiles already."""
        pixels = [
            tiles_of(part, tile=self.tile_size, mean=self.image_mean, std=self.image_std) for part in parts
        ]
        grids = [grid_of(part, tile=self.tile_size) for part in parts]
        return BatchFeature({"pixel_values": torch.cat(pixels), "image_grid_hw": torch.tensor(grids)})


def to_picture(image: Any) -> Image.Image:
    """An RGB picture from one of Pillow or from a uint8 array (height, width, channels).

    Raises:
        InputError: it is something else.
    """
    if isinstance(image, Tensor):
        image = image.numpy()
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or (image.ndim == 3 and image.shape[2] not in (3, 4))
        ):
            raise InputError(
                f"an image must be uint8 of shape (height, width, 3), not {image.dtype} of {image.shape}"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"an image must be one of Pillow or an array, not {type(image).__name__}")
    if 0 in image.size:
        raise InputError(f"an image of {image.width} x {image.height} pixels holds nothing to see")
    return to_rgb(image)
