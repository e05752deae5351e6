# SPDX-License-Identifier: Apache-2.0
"""Records of every modality with small random media, for tests that encode them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from ixc_lightning.types import Record

SHARD, KEY = "set/shard-000000.tar", "s7"
PLACE = f"{SHARD}:{KEY}"
CONTENT = {
    "text": (),
    "image": ("image",),
    "images": ("image", "image"),
    "video": ("video",),
    "both": ("video", "image"),
}
CLIP_FRAMES = 6
SIDES = (48, 56, 84, 112)


def message(role: str, text: str, files: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """A message with the files, as (type, name), before its text."""
    media = [{"type": kind, "file": name} for kind, name in files]
    return {"role": role, "content": [*media, {"type": "text", "text": text}]}


def pair(content: str = "text", *, seed: int = 0, **fields: Any) -> Record:
    """A preference record; ``seed`` decides its words, and the sizes and pixels of its media."""
    rng = np.random.default_rng(seed)
    files = [(kind, f"{place:02d}.{kind}") for place, kind in enumerate(CONTENT[content])]
    numbers = rng.integers(10, 99, 3 + seed % 3)
    settings: dict[str, Any] = {
        "key": KEY,
        "shard": SHARD,
        "source": "test",
        "domain": "reading",
        "messages": (message("user", f"Which is more, {' or '.join(map(str, numbers))}?", tuple(files)),),
        "chosen": (message("assistant", f"It is {numbers.max()}."),),
        "rejected": (message("assistant", f"{numbers.min()}"),),
        "media": {name: _picture(rng) if kind == "image" else _clip(rng) for kind, name in files},
    }
    return Record(**{**settings, **fields})


def instruction(content: str = "text", *, seed: int = 0, **fields: Any) -> Record:
    """An instruction record whose last turn is the chosen response of the pair with the same seed."""
    source = pair(content, seed=seed)
    turns = source.messages + (source.chosen or ())
    return pair(content, seed=seed, **{"messages": turns, "chosen": None, "rejected": None, **fields})


def _picture(rng: np.random.Generator) -> bytes:
    height, width = rng.choice(SIDES, 2)
    return _saved([rng.integers(0, 256, (height, width, 3), dtype=np.uint8)], "PNG")


def _clip(rng: np.random.Generator) -> bytes:
    return _saved(list(rng.integers(0, 256, (CLIP_FRAMES, 56, 56, 3), dtype=np.uint8)), "GIF", duration=500)


def _saved(frames: list[np.ndarray], form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(stream, form, **({"save_all": True, "append_images": rest} if rest else {}), **options)
    return stream.getvalue()
