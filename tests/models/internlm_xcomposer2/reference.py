# SPDX-License-Identifier: Apache-2.0
"""The recording of the released code, and what is needed to run ours on the same inputs."""

from __future__ import annotations

import gzip
import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ixc_lightning.models.internlm_xcomposer2 import (
    InternLMXComposer2ImageProcessor,
    InternLMXComposer2Processor,
    InternLMXComposer2VideoProcessor,
)
from ixc_lightning.models.internlm_xcomposer2.tokenization import (
    CLOSE_TURN,
    END,
    IMAGE_TOKEN,
    OPEN_TURN,
    REWARD_TOKEN,
    START,
    UNKNOWN,
    build_tokenizer,
)

FOLDER = Path(__file__).parents[2] / "fixtures" / "ixc_reference"
TILE = 56
IMAGE_NUMBERS = {"land": 0, "port": 1, "small": 2, "wide": 3}


@cache
def recorded() -> dict[str, Tensor]:
    """Inputs and outputs of the reference."""
    return load_file(FOLDER / "io.safetensors")


@cache
def meta() -> dict[str, Any]:
    """Conversations, scores, hashes."""
    return json.loads((FOLDER / "meta.json").read_text())


def case(name: str) -> dict[str, Any]:
    """What was recorded of one case."""
    return meta()["cases"][name]


def read_gzip(name: str) -> Any:
    """A compressed table of the recording."""
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def released_weights(kind: str) -> dict[str, Tensor]:
    """The tiny checkpoint ``reward`` or ``causal`` under its released names."""
    left_out = {"reward": "output.weight", "causal": "score.weight"}[kind]
    return {
        name: tensor for name, tensor in load_file(FOLDER / "weights.safetensors").items() if name != left_out
    }


def write_released(folder: Path, kind: str, *, weights: dict[str, Tensor] | None = None) -> Path:
    """The tiny checkpoint as a folder in the released layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text((FOLDER / "config.json").read_text())
    save_file(weights or released_weights(kind), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_vocabulary(folder: Path) -> Path:
    """The released tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(lzma.decompress((FOLDER / "tokenizer.model.xz").read_bytes()))
    (folder / "added_tokens.json").write_text((FOLDER / "added_tokens.json").read_text())
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the recording: a byte's id is its value plus 3."""
    vocabulary = {UNKNOWN: 0, START: 1, END: 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocabulary |= {OPEN_TURN: 259, CLOSE_TURN: 260, REWARD_TOKEN: 261}
    vocabulary |= {f"<unused {index}>": index for index in range(262, 271)} | {IMAGE_TOKEN: 271}
    return build_tokenizer(vocabulary, [], whole=[], added=[])


def byte_processor() -> InternLMXComposer2Processor:
    """The processor of the recording."""
    return InternLMXComposer2Processor(
        InternLMXComposer2ImageProcessor(tile_size=TILE),
        byte_tokenizer(),
        InternLMXComposer2VideoProcessor(tile_size=TILE),
    )


def image(name: str) -> Image.Image:
    """One of the recorded source images."""
    return Image.fromarray(recorded()[f"image.{name}"].numpy())


def synthetic(seed: int, width: int, height: int) -> Image.Image:
    """A picture by the recording's recipe."""
    rng = np.random.RandomState(seed)
    coarse = Image.fromarray((rng.uniform(size=(9, 9, 3)) * 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.randint(-12, 13, size=(height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_video(path: Path, *, frames: int = 12, rate: int = 4) -> Path:
    """A short clip of 64 x 48 pixels that grows brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def inputs(names: list[str], prompt: str, processor: InternLMXComposer2Processor) -> dict[str, Tensor]:
    """The model's inputs for a recorded prompt with recorded images."""
    images = [image(name) for name in names]
    return dict(processor(images=images or None, text=prompt, return_tensors="pt"))


def batch_of(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows padded on the right with id 0, their pictures one after the other."""
    length = max(row["input_ids"].shape[1] for row in rows)
    pads = [(0, length - row["input_ids"].shape[1]) for row in rows]
    batch = {
        name: torch.cat(
            [torch.nn.functional.pad(row[name], pad) for row, pad in zip(rows, pads, strict=True)]
        )
        for name in ("input_ids", "attention_mask")
    }
    media = [row for row in rows if "pixel_values" in row]
    if media:
        batch |= {name: torch.cat([row[name] for row in media]) for name in ("pixel_values", "image_grid_hw")}
    return batch
