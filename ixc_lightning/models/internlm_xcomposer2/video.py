# SPDX-License-Identifier: Apache-2.0
"""Videos as one picture: about one frame a second, stacked, each under its number."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ixc_lightning.types import InputError

MAX_FRAMES = 32
TILES_PER_FRAME = 2
"""The longer side of a frame in the composed picture, in tiles."""
STRIP = 40
GAP = 10
LINE = 2


def sample_indices(num_frames: int, fps: float, *, max_frames: int = MAX_FRAMES) -> list[int]:
    """The frames that are shown: one a second, and where that is too many, evenly spaced ones of these.

    As in the release the last ones are then left out: of n frames, a second apart, those at
    ⌊i · n / (max + 1)⌋. Below half a frame a second all frames are taken, where the release fails.

    Raises:
        InputError: there are no frames, or ``max_frames`` is not positive.
    """
    if num_frames < 1:
        raise InputError("a video without frames cannot be shown: leave the sample out")
    if max_frames < 1:
        raise InputError(f"max_frames must be at least 1, not {max_frames}")
    seconds = list(range(0, num_frames, max(1, round(fps))))
    if len(seconds) <= max_frames:
        return seconds
    step = len(seconds) / (max_frames + 1)
    return [seconds[int(index * step)] for index in range(max_frames)]


def compose(frames: Sequence[Image.Image], *, tile: int) -> Image.Image:
    """One white picture with all frames: landscape ones below each other, others side by side.

    Each frame is scaled to two tiles on its longer side and stands below a strip with the text ``<IMAGE i>``;
    a black line divides it from the next. The text is drawn in the font that ships with Pillow; the release
    downloads another one.

    Raises:
        InputError: there are no frames.
    """
    if not frames:
        raise InputError("a video without frames cannot be shown: leave the sample out")
    stacked = frames[-1].width > frames[-1].height
    scaled = [_scale(frame, TILES_PER_FRAME * tile) for frame in frames]
    if stacked:
        size = max(f.width for f in scaled), sum(STRIP + f.height + GAP for f in scaled)
    else:
        size = sum(f.width + GAP for f in scaled), STRIP + max(f.height for f in scaled)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=STRIP)
    x = y = 0
    for number, frame in enumerate(scaled):
        draw.text((x, y), f"<IMAGE {number}>", font=font, fill="black")
        canvas.paste(frame, (x, y + STRIP))
        is_last = number == len(scaled) - 1
        if stacked:
            line = y + STRIP + frame.height + GAP // 2
            ends = [(0, line), (size[0], line)]
            y += STRIP + frame.height + GAP
        else:
            line = x + frame.width + GAP // 2
            ends = [(line, 0), (line, size[1])]
            x += frame.width + GAP
        if not is_last:
            draw.line(ends, fill="black", width=LINE)
    return canvas


def _scale(frame: Image.Image, longer: int) -> Image.Image:
    ratio = frame.width / frame.height
    size = (longer, int(longer / ratio)) if frame.width > frame.height else (int(longer * ratio), longer)
    if 0 in size:
        raise InputError(
            f"a frame of {frame.width} x {frame.height} pixels is too thin to be shown: crop the video"
        )
    return frame.resize(size, Image.Resampling.BILINEAR)
