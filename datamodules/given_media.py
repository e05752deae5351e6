# SPDX-License-Identifier: Apache-2.0
"""Pictures and clips in whatever form a caller has them, as the bytes of a file.

What is in memory becomes a lossless file, so that it is checked, turned upright and sampled by the very code
that reads shards, and scores as the same picture in a shard does.
"""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from PIL import Image

from ixc_lightning.types import InputError

Picture: TypeAlias = Image.Image | np.ndarray | bytes | str | Path
Video: TypeAlias = np.ndarray | Sequence[Image.Image] | bytes | str | Path

MAX_FILE_BYTES = 1_000_000_000
MAX_URL_BYTES = 200_000_000
URL_SECONDS = 30.0
FRAMES_PER_SECOND = 2
"""Of clips in memory, which do not say how fast they are."""
HERE = Path()
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Pillow's modes that a PNG keeps as they are."""
MODES_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def picture_bytes(picture: Picture, *, where: str, folder: Path = HERE, allow_urls: bool = False) -> bytes:
    """A picture as the bytes of an image file.

    Args:
        picture: a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8, the bytes of a file, a path,
            or an http(s) URL.
        where: what the picture is called in messages.
        folder: where relative paths begin.
        allow_urls: whether a URL may be fetched.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture, where)
    if isinstance(picture, Image.Image):
        return _as_png(picture, where)
    return _file_bytes(picture, where, folder, allow_urls, "a PIL image, an array, bytes, a path or a URL")


def video_bytes(video: Video, *, where: str, folder: Path = HERE, allow_urls: bool = False) -> bytes:
    """A clip as the bytes of a video file.

    Args:
        video: an array (F, H, W, 3) of uint8 or a list of PIL images, taken to show ``FRAMES_PER_SECOND``;
            or the bytes of a file, a path, or an http(s) URL.
        where: what the clip is called in messages.
        folder: where relative paths begin.
        allow_urls: whether a URL may be fetched.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(video, list | tuple):
        video = _stacked(video, where)
    if isinstance(video, np.ndarray):
        return _as_ffv1(video, where)
    return _file_bytes(
        video, where, folder, allow_urls, "an array, a list of PIL images, bytes, a path or a URL"
    )


def _from_array(array: np.ndarray, where: str) -> Image.Image:
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if array.dtype != np.uint8 or len(shape) != 3 or shape[2] not in MODES_OF_CHANNELS or not array.size:
        raise InputError(
            f"{where}: an array of {array.dtype} with shape {array.shape}; give uint8 of shape (H, W), "
            "(H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(array.reshape(shape[:2]) if shape[2] == 1 else array)


def _as_png(picture: Image.Image, where: str) -> bytes:
    """The picture as an uncompressed PNG, with the orientation that its camera noted."""
    file = io.BytesIO()
    try:
        kept = picture if picture.mode in PNG_MODES else picture.convert("RGB")
        kept.save(file, "PNG", compress_level=0, exif=picture.getexif())
    except (OSError, ValueError, SyntaxError) as error:  # a lazy image is read here, and may be damaged
        raise InputError(f"{where}: the picture cannot be read ({error}); open it anew") from error
    return file.getvalue()


def _stacked(frames: Sequence[Any], where: str) -> np.ndarray:
    if not frames or not all(isinstance(frame, Image.Image) for frame in frames):
        raise InputError(f"{where}: a clip that is a list holds PIL images, at least one")
    if len({frame.size for frame in frames}) > 1:
        raise InputError(f"{where}: the frames of a clip have different sizes; resize them to one")
    return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])


def _as_ffv1(frames: np.ndarray, where: str) -> bytes:
    """The frames as FFV1, which loses nothing, every one a keyframe."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InputError(
            f"{where}: an array of {frames.dtype} with shape {frames.shape}; give uint8 of shape (F, H, W, 3)"
        )
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=Fraction(FRAMES_PER_SECOND))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.gop_size = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def _file_bytes(file: Any, where: str, folder: Path, allow_urls: bool, expected: str) -> bytes:
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str | Path):
        raise InputError(f"{where}: is of type {type(file).__name__}; give {expected}")
    if isinstance(file, str) and "://" in file:
        return _fetched(file, where, allow_urls)
    path = folder / Path(file).expanduser()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{where}: {file} has more than {MAX_FILE_BYTES:,} bytes; make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{where}: {file} cannot be read ({error.strerror}); name a file") from error


def _fetched(url: str, where: str, allow_urls: bool) -> bytes:
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(f"{where}: {url} is neither a path nor an http(s) URL")
    if not allow_urls:
        raise InputError(
            f"{where}: {url} is a URL, and none is fetched unless asked for: give allow_urls, or a file"
        )
    try:
        with urllib.request.urlopen(url, timeout=URL_SECONDS) as answer:
            data: bytes = answer.read(MAX_URL_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where}: {url} cannot be fetched ({error}); download it, and give the file"
        ) from error
    if len(data) > MAX_URL_BYTES:
        raise InputError(f"{where}: {url} has more than {MAX_URL_BYTES:,} bytes; make it smaller")
    return data
