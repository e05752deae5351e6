# SPDX-License-Identifier: Apache-2.0
"""What pictures and clips look like, in a few numbers, and a search for those that look the same.

Perceptual hashes alone merge pictures of one layout, such as two handwritten ones, so here a hash finds the
candidates and a thumbnail decides. The libraries for image hashes have no thumbnails, and bring SciPy.
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
HASH_SIDE = 8
BITS = 2 * HASH_SIDE**2
MAX_BITS = 10
"""Bits of the hash in which pictures that look the same may differ."""
MAX_MEAN = 3.0
"""Levels of 255 by which their thumbnails may differ on average: compression and scaling make up to 1."""
MAX_CELL = 40
"""Levels by which they may differ in one cell: more is something small that was changed."""


class Look(NamedTuple):
    """What an image or a clip looks like.

    Attributes:
        exact: SHA-256 of size and decoded pixels, so that metadata and lossless formats make no difference.
        hash: gradients of the middle frame, one bit each.
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
        small = [np.asarray(frame.resize((SIDE, SIDE), Image.Resampling.BOX)) for frame in frames]
        return cls(digest.digest(), _gradients(frames[len(frames) // 2]), np.stack(small))

    def resembles(self, other: Look) -> bool:
        """Whether two looks are of one picture or clip: in every frame nearly the same thumbnail."""
        if self.thumbnails.shape != other.thumbnails.shape:
            return False
        gaps = np.abs(self.thumbnails.astype(np.int16) - other.thumbnails)
        return bool(gaps.max() <= MAX_CELL and (gaps.mean(axis=(1, 2, 3)) <= MAX_MEAN).all())


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


def _gradients(picture: Image.Image) -> int:
    """The difference hash: whether each cell is darker than that to its right, and than that below it."""
    side = HASH_SIDE + 1
    cells = np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.int16)
    # Compression makes differences of a level or two where there are none.
    right = np.diff(cells, axis=1)[:HASH_SIDE] > 3
    below = np.diff(cells, axis=0)[:, :HASH_SIDE] > 3
    return int.from_bytes(np.packbits([right, below]).tobytes())


def _bands(value: int) -> list[tuple[int, int]]:
    """Cut a hash into one piece more than bits may differ, so that near ones share a piece."""
    size = -(-BITS // (MAX_BITS + 1))
    return [(start, value >> start & ((1 << size) - 1)) for start in range(0, BITS, size)]
