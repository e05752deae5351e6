# SPDX-License-Identifier: Apache-2.0
"""What pictures and clips look like, in a few numbers, and a search for those that look the same.

Perceptual hashes alone merge pictures of one layout, such as two handwritten digits, two pages of text or two
bar charts, so here a hash finds the candidates and thumbnails decide. The libraries for image hashes have no
thumbnails, and bring SciPy and PyWavelets for what is one product of matrices.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.types import Record

SIDE = 16
"""Cells along each side of a thumbnail."""
HASH_CELLS = 32
"""Cells along each side of the picture that is hashed …"""
HASH_SIDE = 8
"""… and of the low frequencies that make the hash."""
BITS = HASH_SIDE**2
MAX_BITS = 6
"""Bits of the hash in which pictures that look the same may differ."""
MIN_CORRELATION = 0.995
"""Of their thumbnails, frame by frame. Compressed and scaled copies of photographs, digits, charts, drawings
and pages of text have more, different ones of the same layout less."""
MAX_CELL = 40
"""Levels of 255 by which they may differ in one cell: more is something small that was changed."""
FLAT = 2.0
"""Standard deviation in levels below which a frame shows nothing, so that only its colour counts …"""
MAX_SHADE = 3.0
"""… which may differ by so many levels."""


class Look(NamedTuple):
    """What an image or a clip looks like.

    Attributes:
        exact: SHA-256 of size and decoded pixels, so that metadata and lossless formats make no difference.
        hash: low frequencies of the middle frame, one bit each.
        thumbnails: every frame in small.
    """

    exact: bytes
    hash: int
    thumbnails: UInt8[np.ndarray, "F side side 3"]

    @classmethod
    def of(cls, frames: list[Image.Image]) -> Look:
        """Return the look of the frames of a clip, or of one picture."""
        digest = hashlib.sha256()
        for frame in frames:
            digest.update(repr(frame.size).encode() + frame.tobytes())
        small = [np.asarray(_shrink(frame, SIDE)) for frame in frames]
        return cls(digest.digest(), _hash(frames[len(frames) // 2]), np.stack(small))

    def resembles(self, other: Look) -> bool:
        """Whether two looks are of one picture or clip: in every frame nearly the same thumbnail."""
        if self.thumbnails.shape != other.thumbnails.shape:
            return False
        gaps = np.abs(self.thumbnails.astype(np.int16) - other.thumbnails)
        pairs = zip(self.thumbnails, other.thumbnails, strict=True)
        return bool(gaps.max() <= MAX_CELL) and all(_shows_same(a, b) for a, b in pairs)


def looks_of(record: Record, *, video_frames: int) -> list[Look]:
    """Return the look of every image and clip of a record, in order; a clip by its sampled frames.

    Raises:
        InputError: one cannot be decoded.
    """
    looks = []
    for part in record.parts:
        if part["type"] == "text":
            continue
        data, where = record.media[part["file"]], f"{record.shard}:{record.key}.{part['file']}"
        if part["type"] == "image":
            looks.append(Look.of([decode_image(data, where=where)]))
        else:
            clip = decode_video(data, frames=video_frames, where=where)
            looks.append(Look.of([Image.fromarray(frame) for frame in clip.frames]))
    return looks


class LookIndex:
    """Looks of many pictures, by the number of the record that each belongs to."""

    def __init__(self) -> None:
        self._looks: list[tuple[Look, int]] = []
        self._exact: dict[bytes, int] = {}
        self._bands: dict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, look: Look, owner: int) -> None:
        """Add a look."""
        self._exact.setdefault(look.exact, owner)
        for band in _bands(look.hash):
            self._bands[band].append(len(self._looks))
        self._looks.append((look, owner))

    def has_exact(self, look: Look) -> bool:
        """Whether a picture of these very pixels is among them."""
        return look.exact in self._exact

    def near(self, look: Look) -> Iterator[int]:
        """Give the owners of all pictures that look the same, in the order in which they were added."""
        candidates = {place for band in _bands(look.hash) for place in self._bands.get(band, ())}
        for place in sorted(candidates):
            other, owner = self._looks[place]
            if (look.hash ^ other.hash).bit_count() <= MAX_BITS and look.resembles(other):
                yield owner


def _shows_same(a: UInt8[np.ndarray, "side side 3"], b: UInt8[np.ndarray, "side side 3"]) -> bool:
    """Whether two thumbnails show the same; brightness and contrast may differ."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    if min(first.std(), second.std()) < FLAT:
        return bool(max(first.std(), second.std()) < 2 * FLAT and abs(first - second).mean() <= MAX_SHADE)
    return bool(np.corrcoef(first.ravel(), second.ravel())[0, 1] >= MIN_CORRELATION)


def _hash(picture: Image.Image) -> int:
    """The pHash (Zauner, 2010): which low frequencies of the cosine transform are above their median."""
    cells = np.asarray(_shrink(picture, HASH_CELLS).convert("L"), dtype=np.float64)
    places = 2 * np.arange(HASH_CELLS) + 1
    waves = np.cos(np.pi / (2 * HASH_CELLS) * np.arange(HASH_SIDE)[:, None] * places)
    low = waves @ cells @ waves.T
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    # The gap makes it several times as fast: whole pixels are averaged first.
    return picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _bands(value: int) -> list[tuple[int, int]]:
    """Cut a hash into one piece more than bits may differ, so that near ones share a piece."""
    size = -(-BITS // (MAX_BITS + 1))
    return [(start, value >> start & ((1 << size) - 1)) for start in range(0, BITS, size)]
