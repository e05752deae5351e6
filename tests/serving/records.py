# SPDX-License-Identifier: Apache-2.0
"""Small requests with pictures and clips, and what they are in Python."""

from __future__ import annotations

import base64

import numpy as np

from ixc_lightning.datamodules.conversations import given_candidates
from ixc_lightning.datamodules.given_media import picture_bytes, video_bytes

CANDIDATES = given_candidates("how many?", ["two", "three"], shard="conversation", key="0")


def picture(seed: int = 0, size: int = 32) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return picture_bytes(pixels, where="a test")


def clip(seed: int = 0, frames: int = 6, size: int = 32) -> bytes:
    """A clip of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    return video_bytes(pixels, where="a test")


def text_of(data: bytes) -> str:
    """The bytes in base64, as a request holds them."""
    return base64.b64encode(data).decode()


def said(answer: str, question: str = "what is it?", *kinds: str) -> list[dict[str, object]]:
    """A conversation that ends with an answer, with places for media before the question."""
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
