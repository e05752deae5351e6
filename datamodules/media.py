# SPDX-License-Identifier: Apache-2.0
"""From the original bytes of a picture or a clip to pixels.

Both functions return upright RGB, and raise one ``InputError`` that names the place, whatever is wrong with
the bytes.
"""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ixc_lightning.types import InputError

try:
    import simplejpeg
except ImportError:  # the extra ``turbo`` is not installed
    simplejpeg = None

MAX_IMAGE_PIXELS = 80_000_000
"""Larger pictures are refused before they are decoded; below the size at which Pillow starts to warn."""
MAX_CLIP_PIXELS = 500_000_000
"""Pixels of all sampled frames of a clip together: 1.5 GB of RGB."""
MAX_CLIP_LENGTH = 500_000
"""Frames that a video may have: more than four hours at 30 a second."""
MAX_DECODED_PIXELS = 200_000_000_000
"""Pixels that may have to be decoded to get at the sampled frames: an hour of 1080p without a keyframe."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,gif"
"""Demuxers that read one file; playlists, which could open other files and addresses, are not among them."""


class Clip(NamedTuple):
    """Frames sampled from a video, and where they were in it.

    Attributes:
        frames: upright RGB pixels.
        indices: place of each frame among the frames of the video, counted from 0.
        timestamps: time of each frame in seconds from the first one.
        fps: average frame rate of the video.
        num_frames: frames that the video has.
    """

    frames: UInt8[np.ndarray, "F H W 3"]
    indices: list[int]
    timestamps: list[float]
    fps: float
    num_frames: int


def decode_image(data: bytes, *, where: str) -> Image.Image:
    """Return a picture in RGB: turned upright, transparency over white, the first frame if it is animated.

    Args:
        data: the bytes of a JPEG, PNG, WebP or GIF file.
        where: shard, key and file name, for messages.

    Raises:
        InputError: naming ``where``, if the bytes are no such file, are cut off, or make too large a picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _check_size(image.width, image.height, where)
            picture = _turbo(image, data) or image
            picture.load()
            if _is_turned(picture):
                ImageOps.exif_transpose(picture, in_place=True)
            return _to_rgb(picture)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{where}: {_too_large('more')}") from None
    except Exception as error:  # damaged bytes make Pillow's parsers raise almost anything
        reason = "not recognised" if isinstance(error, UnidentifiedImageError) else str(error)
        problem = (
            f"cannot be decoded ({reason}); the file is damaged or is not one of {', '.join(IMAGE_FORMATS)}"
        )
        raise InputError(f"{where}: {problem}. Download it again or drop the record") from None


def _turbo(image: Image.Image, data: bytes) -> Image.Image | None:
    """Return the pixels of a JPEG as Pillow would decode them, or None.

    What simplejpeg refuses Pillow decodes or names; CMYK the two convert differently.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:
            return None
        picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    except Exception:  # it gives no reason that Pillow would not give better
        return None
    picture.info = image.info
    return picture


def _is_turned(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # EXIF that cannot be read turns a picture in no viewer
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit greys where other decoders scale them.
        return Image.fromarray(
            (np.asarray(image).astype(np.uint32) >> 8).clip(max=255).astype(np.uint8)
        ).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise InputError(f"{where}: {_too_large(f'{width}x{height}')}")


def _too_large(size: str) -> str:
    return (
        f"has {size} pixels, the limit is {MAX_IMAGE_PIXELS:,}; make the picture smaller or drop the record"
    )


def decode_video(data: bytes, *, frames: int, where: str) -> Clip:
    """Return frames of a clip, spread evenly from the first to the last one.

    Frame numbers are round(linspace(0, n − 1, frames)) in order of presentation, so that two runs see the
    same frames whatever the codec. Only the groups of pictures that hold a wanted frame are decoded.

    Args:
        data: the bytes of an MP4, MOV, WebM, Matroska, AVI, MPEG-TS or GIF file.
        frames: how many frames to return; a shorter clip gives all that it has.
        where: shard, key and file name, for messages.

    Raises:
        InputError: naming ``where``, if the bytes hold no video, are damaged, or make too large a clip.
        ValueError: if ``frames`` is not positive.
    """
    if frames < 1:
        raise ValueError(f"frames must be positive, not {frames}")
    try:
        options = {"format_whitelist": VIDEO_FORMATS}
        with av.open(io.BytesIO(data), options=options, metadata_errors="ignore") as container:
            return _sample(container, frames, where)
    except InputError:
        raise
    except (av.FFmpegError, ValueError) as error:
        problem = f"cannot be decoded ({getattr(error, 'strerror', error)}); the file is damaged or no video"
        raise InputError(f"{where}: {problem}. Download it again or drop the record") from None


def _sample(container: Any, frames: int, where: str) -> Clip:
    stream = _video_stream(container, where)
    times, keyframes = _timeline(container, stream, where)
    indices = np.linspace(0, len(times) - 1, min(frames, len(times))).round().astype(int).tolist()
    _check_size(stream.width, stream.height, where)
    if stream.width * stream.height * len(indices) > MAX_CLIP_PIXELS:
        raise InputError(
            f"{where}: {len(indices)} frames of {stream.width}x{stream.height} are too much; ask for fewer"
        )
    wanted = [times[index] for index in indices]
    if _num_decoded(times, wanted, keyframes) * stream.width * stream.height > MAX_DECODED_PIXELS:
        problem = (
            "has too few keyframes for its length and size; write it anew with ffmpeg -i OLD -g 30 NEW.mp4"
        )
        raise InputError(f"{where}: {problem}")
    pixels = _decode_at(container, stream, wanted, keyframes)
    if len({array.shape for array in pixels.values()}) > 1 or len(pixels) < len(wanted):
        problem = f"{len(pixels)} of {len(wanted)} frames can be decoded to one size"
        raise InputError(f"{where}: only {problem}; write it anew with ffmpeg -i OLD -c:v libx264 NEW.mp4")
    seconds = [float((time - times[0]) * stream.time_base) for time in wanted]
    fps = float(stream.average_rate or 0)
    return Clip(np.stack([pixels[time] for time in wanted]), indices, seconds, fps, len(times))


def _video_stream(container: Any, where: str) -> Any:
    streams = [
        s for s in container.streams.video if s.codec_context and not s.disposition & Disposition.attached_pic
    ]
    if not streams:
        found = ", ".join(s.type for s in container.streams) or "none"
        raise InputError(
            f"{where}: has no video stream that can be decoded (streams: {found}); drop the record"
        )
    codec = streams[0].codec_context
    # Loader workers are parallel already: threads inside the decoder cost time and gain none.
    codec.thread_type = "NONE"
    # A stream may come to another size than the container says.
    codec.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}
    return streams[0]


def _timeline(container: Any, stream: Any, where: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the time of every frame, and of every keyframe with the time to seek it by, both ascending."""
    times, keyframes = set(), []
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            raise InputError(
                f"{where}: has no time stamps; write it anew with ffmpeg -i OLD -c:v libx264 NEW.mp4"
            )
        times.add(packet.pts)
        if len(times) > MAX_CLIP_LENGTH:
            problem = f"has more than {MAX_CLIP_LENGTH:,} frames; cut it into shorter clips"
            raise InputError(f"{where}: {problem} or drop the record")
        if packet.is_keyframe:
            # Some containers seek by the time of decoding, and it is never the later one.
            keyframes.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
    if not times:
        raise InputError(f"{where}: has no frames; drop the record")
    return sorted(times), sorted(keyframes)


def _decode_at(
    container: Any, stream: Any, wanted: list[int], keyframes: list[tuple[int, int]]
) -> dict[int, np.ndarray]:
    """Return the pixels of the frames at the times ``wanted`` (ascending), as far as they can be decoded."""
    found: dict[int, np.ndarray] = {}
    for keyframe, targets in _groups(wanted, keyframes):
        container.seek(keyframe[1], stream=stream)
        found |= _read_until(container.decode(stream), set(targets))
    return found


def _groups(
    wanted: list[int], keyframes: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Give every keyframe that is needed, and the wanted times that are decoded from it on.

    Times before the first keyframe are left out: nothing can be decoded there.
    """
    starts = [time for time, _ in keyframes]
    for group, targets in groupby(wanted, key=lambda time: bisect_right(starts, time) - 1):
        if group >= 0:
            yield keyframes[group], list(targets)


def _num_decoded(times: list[int], wanted: list[int], keyframes: list[tuple[int, int]]) -> int:
    """Return how many frames must be decoded to get at those that are wanted."""
    return sum(
        bisect_right(times, targets[-1]) - bisect_left(times, start)
        for (start, _), targets in _groups(wanted, keyframes)
    )


def _read_until(decoded: Iterable[Any], targets: set[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    reformatter = VideoReformatter()
    for frame in decoded:
        if frame.pts in targets:
            # One thread: the default starts a pool for every frame, which costs more than the conversion.
            pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            # The display matrix turns counter-clockwise, and so does rot90.
            found[frame.pts] = np.rot90(pixels, round(frame.rotation / 90))
        if len(found) == len(targets) or (frame.pts is not None and frame.pts > max(targets)):
            break
    return found
