# SPDX-License-Identifier: Apache-2.0
"""Pixels that stay bytes until they are on the device, a quarter of what a processor's floats take.

A processor decodes, resizes, cuts and, last of all, turns bytes into floats by an affine map for each
channel. If a worker leaves that step out, it touches, collates and hands over a quarter of the memory, and
the step is done on the device instead.

Processors lay pixels out in their own ways, and some pad or resize after that step. So nothing is assumed:
the map is fitted to what the processor makes of a few made-up pictures, and used only if it gives the
processor's own floats for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ixc_lightning.datamodules.media import Clip
from ixc_lightning.functional.media import merge_media
from ixc_lightning.types import InputError

PIXEL_TOLERANCE = 1e-6
"""Float32 rounding of pixels, which lie between -4 and 4."""
COLOUR = (40, 130, 220)
SIZES = ((97, 61), (40, 131), (301, 203))  # width and height
CLIPS = ((57, 43, 3), (90, 121, 4))  # width, height, frames

Media: TypeAlias = Mapping[str, Tensor]
Prompt: TypeAlias = tuple[Sequence[Image.Image], Sequence[Clip]]
Processor: TypeAlias = Callable[[Sequence[Image.Image], Sequence[Clip]], Media]
"""Makes pixel tensors and grids of the pictures and clips of one prompt."""
logger = logging.getLogger(__name__)


class Scale(NamedTuple):
    """The affine map of bytes to floats, (byte - mean) / std, for the axes behind the first one.

    Attributes:
        mean: in grey levels; axes along which it does not change have size 1.
        std: in grey levels, of the same shape.
    """

    mean: Float[Tensor, " ..."]
    std: Float[Tensor, " ..."]

    def floats(self, pixels: UInt8[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """The floats that the processor would have made, on the device of the bytes."""
        mean, std = (part.to(pixels.device, non_blocking=True) for part in self)
        return pixels.to(torch.float32).sub_(mean).div_(std)


Scales: TypeAlias = Mapping[str, Scale]
"""The map of each tensor of bytes, by the processor's name."""
NO_SCALES: Scales = {}


def to_floats(media: Media, scales: Scales) -> dict[str, Tensor]:
    """The media with floats in place of bytes; what is floats already stays as it is."""
    return {
        name: scales[name].floats(value) if name in scales and value.dtype == torch.uint8 else value
        for name, value in media.items()
    }


def merge_pixels(samples: Sequence[Media], scales: Scales) -> dict[str, Tensor]:
    """``merge_media`` of samples whose pixels may be bytes.

    Places that are filled up must be 0 after the map. So pixels that differ in shape between the samples
    become floats here.
    """
    ragged = {
        name: scale
        for name, scale in scales.items()
        if len({sample[name].shape[1:] for sample in samples if name in sample}) > 1
    }
    return merge_media([to_floats(sample, ragged) for sample in samples])


def find_scales(to_float: Processor, to_byte: Processor) -> Scales:
    """The maps that turn what ``to_byte`` makes into what ``to_float`` makes, by name of the tensor.

    Args:
        to_float: the processor as it is.
        to_byte: the processor, asked to leave the bytes alone.

    Returns:
        For each tensor of bytes its map; nothing unless the maps hold for every picture and clip tried.
    """
    rng = np.random.default_rng(0)
    pictures = [_picture(rng, width, height) for width, height in SIZES]
    clips = [_clip([_picture(rng, width, height) for _ in range(count)]) for width, height, count in CLIPS]
    picture = Image.new("RGB", SIZES[0], COLOUR)
    clip = _clip([Image.new("RGB", CLIPS[0][:2], COLOUR)] * CLIPS[0][2])
    trials: list[Prompt] = [
        *(([one], []) for one in pictures),
        (pictures[:2], []),
        *(([], [one]) for one in clips),
        (pictures[:1], clips[:1]),
    ]
    try:
        scales = _fit(to_float, to_byte, ([picture], []), (pictures[:1], []))
        if not scales:  # clips would be in vain
            raise _Unlike("the processor makes no bytes of pictures")
        scales = _fit(to_float, to_byte, ([], [clip]), ([], clips[:1])) | scales
        for trial in trials:
            _check(_try(to_float, trial), _try(to_byte, trial), scales)
    except _Unlike as error:
        logger.debug("pixels are handed over as floats: %s", error)
        return NO_SCALES
    return scales


class _Unlike(Exception):
    """Bytes are not what the processor's floats were made of."""


def _fit(to_float: Processor, to_byte: Processor, flat: Prompt, noise: Prompt) -> dict[str, Scale]:
    """The map of each tensor of bytes, told from a picture of one colour and one of the same size of all."""
    colours, floats, pixels = _try(to_byte, flat), _try(to_float, noise), _try(to_byte, noise)
    scales = {}
    for name in [name for name in colours if name in floats and name in pixels]:
        if (pixels[name].dtype, floats[name].dtype) == (torch.uint8, torch.float32):
            if not colours[name].shape == pixels[name].shape == floats[name].shape:
                raise _Unlike(f"{name} have another shape")
            scales[name] = _fit_scale(_channels(name, colours[name]), pixels[name], floats[name])
    return scales


def _channels(name: str, colours: Tensor) -> Int[Tensor, " ..."]:
    """The channel of every element behind the first axis; axes that do not tell channels apart are 1 wide."""
    shown = torch.stack([(colours == level).any(dim=0) for level in COLOUR])
    for axis in range(1, shown.dim()):
        narrow = shown.any(dim=axis, keepdim=True)
        shown = narrow if (narrow.sum(dim=0) <= 1).all() else shown
    if (shown.sum(dim=0) != 1).any():
        raise _Unlike(f"an element of {name} is of no channel, or of several")
    return shown.int().argmax(dim=0)


def _fit_scale(channels: Tensor, pixels: Tensor, floats: Tensor) -> Scale:
    """The least-squares line of each channel, in float64 so that rounding averages out."""
    mean, std = torch.zeros(channels.shape), torch.ones(channels.shape)
    for channel in channels.unique():
        is_shown = (channels == channel).expand(pixels.shape)
        slope, intercept = np.polyfit(pixels[is_shown].double(), floats[is_shown].double(), 1)
        mean[channels == channel] = -intercept / slope
        std[channels == channel] = 1 / slope
    return Scale(mean, std)


def _check(floats: Media, pixels: Media, scales: Scales) -> None:
    """Raise unless the maps turn ``pixels`` into ``floats`` and everything else is alike."""
    if floats.keys() != pixels.keys():
        raise _Unlike(f"there are {sorted(pixels)} in place of {sorted(floats)}")
    for name, got in to_floats(pixels, scales).items():
        want = floats[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise _Unlike(f"{name} have another shape or type")
        if name not in scales:
            if not torch.equal(got, want):
                raise _Unlike(f"{name} are others")
        elif pixels[name].dtype != torch.uint8:  # else a batch would have to hold both
            raise _Unlike(f"{name} are not always bytes")
        elif not torch.allclose(got, want, rtol=0.0, atol=PIXEL_TOLERANCE):
            raise _Unlike(f"{name} differ by up to {(got - want).abs().max():.1e}")


def _try(process: Processor, prompt: Prompt) -> Media:
    """What the processor makes of it; nothing if it does not take this kind of prompt."""
    try:
        return process(*prompt)
    except InputError:
        return {}


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _clip(pictures: Sequence[Image.Image]) -> Clip:
    count = len(pictures)
    frames = np.stack([np.asarray(picture) for picture in pictures])
    return Clip(frames, list(range(count)), [float(second) for second in range(count)], 1.0, count)
