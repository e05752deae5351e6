# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family that is promised to work, each with its own processor, all built
offline.

``build(name, folder)`` writes a Hugging Face folder; ``sample`` puts one conversation through its processor;
``collate`` pads and merges samples the way a datamodule does. Pictures differ in size and clips in length, so
that ragged batches are the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers as tf
from torch import Tensor

from ixc_lightning.functional.media import merge_media
from ixc_lightning.models.backbone import Backbone, Visuals
from ixc_lightning.types import Prompts
from tests.family_configs import BUILDERS

KINDS = {
    "qwen2_5_vl": ("text", "image", "images", "video", "both"),
    "qwen3_vl": ("text", "image", "images", "video", "both"),
    "internvl": ("text", "image", "images", "video", "both"),
    "llava_onevision": ("text", "image", "images", "video", "both"),
    "smolvlm": (
        "text",
        "image",
        "images",
        "video",
    ),  # its processor takes pictures or a clip, not both in one sample
    "gemma3": ("text", "image", "images"),
    "internlm_xcomposer2": ("text", "image", "images", "video", "both"),
    "qwen2": ("text",),
}
"""The kinds of sample that each family takes; ``both`` is a picture and a clip in one prompt."""

CONTENT = {
    "text": (),
    "image": ("image",),
    "images": ("image", "image"),
    "video": ("video",),
    "both": ("video", "image"),
}
NOT_MEDIA = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
HIDDEN_TOLERANCE = 1e-5  # float32 sums in another order; the states are of order one


class Tiny(NamedTuple):
    """A tiny family: its folder, its processor, transformers' own model and ours, both in evaluation mode."""

    name: str
    folder: str
    processor: tf.ProcessorMixin
    plain: tf.PreTrainedModel
    backbone: Backbone

    @classmethod
    def build(cls, name: str, folder: Path) -> Tiny:
        """Build the family in ``folder`` and load it in both ways."""
        build(name, folder)
        is_text = KINDS[name] == ("text",)
        auto = tf.AutoModelForCausalLM if is_text else tf.AutoModelForImageTextToText
        processor = (tf.AutoTokenizer if is_text else tf.AutoProcessor).from_pretrained(folder)
        plain = auto.from_pretrained(folder).eval()
        return cls(name, str(folder), processor, plain, Backbone(str(folder)).eval())

    def samples(self, kinds: Sequence[str] | None = None) -> list[dict[str, Tensor]]:
        """One sample of each kind, then again in reverse order, all with other words and pictures."""
        kinds = kinds or KINDS[self.name]
        order = enumerate([*kinds, *reversed(kinds)])
        return [sample(self.processor, kind, seed=seed) for seed, kind in order]

    @torch.no_grad()
    def expected(self, item: dict[str, Tensor]) -> Tensor:
        """The last hidden states of transformers' base model for one sample, given pixels."""
        return self.plain.base_model(**item).last_hidden_state[0]


def build(name: str, folder: Path, *, tie_word_embeddings: bool = False) -> Path:
    """Write the tiny model of a family with its language head, and its processor; return the folder."""
    config, processor = BUILDERS[name]()
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tie_word_embeddings
    auto = tf.AutoModelForCausalLM if name == "qwen2" else tf.AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config)
        if (
            name == "gemma3"
        ):  # its projector starts at zero: the pictures would have no effect and the tower no gradient
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def sample(processor: tf.ProcessorMixin, kind: str, *, seed: int = 0) -> dict[str, Tensor]:
    """One conversation of the given kind through the family's own processor, as a batch of one.

    Args:
        processor: the family's processor, or a plain tokenizer.
        kind: one of ``CONTENT``.
        seed: decides the words, the sizes and the pixels.
    """
    rng = np.random.default_rng(seed)
    parts = [{"type": part} for part in CONTENT[kind]]
    words = {"type": "text", "text": " ".join(f"word {n}" for n in rng.integers(0, 99, 3 + seed % 4))}
    conversation = [{"role": "user", "content": [*parts, words]}]
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    images = [_picture(rng) for part in CONTENT[kind] if part == "image"]
    videos = [
        np.stack([_picture(rng, 56, 56) for _ in range(4 + 2 * (seed % 2))])
        for part in CONTENT[kind]
        if part == "video"
    ]
    inputs: dict[str, object] = {"text": [text], "return_tensors": "pt"}
    if images:
        inputs["images"] = [images]
    if videos:
        inputs["videos"] = [videos]
        inputs["videos_kwargs"] = {
            "do_sample_frames": False,
            "video_metadata": [[_clip(len(video)) for video in videos]],
        }
    outputs = processor(**inputs)
    return {key: torch.as_tensor(value) for key, value in outputs.items()}


def collate(samples: Sequence[dict[str, Tensor]], *, side: str = "left", extra: int = 0) -> Prompts:
    """Pad samples to one length, plus ``extra`` places, and merge their media."""
    length = max(item["input_ids"].shape[1] for item in samples) + extra

    def stack(key: str) -> Tensor:
        rows = [item[key][0] for item in samples]
        gaps = [(length - len(row), 0) if side == "left" else (0, length - len(row)) for row in rows]
        return torch.stack([torch.nn.functional.pad(row, gap) for row, gap in zip(rows, gaps, strict=True)])

    mask = stack("attention_mask").bool()
    types = {key: stack(key) for key in NOT_MEDIA[2:] if key in samples[0]}
    return Prompts(stack("input_ids") * mask, mask, types, merge_media([media_of(item) for item in samples]))


def media_of(item: dict[str, Tensor]) -> dict[str, Tensor]:
    """The media of a sample: everything that is not one value per token."""
    return {key: value for key, value in item.items() if key not in NOT_MEDIA}


def of_media(media: dict[str, Tensor]) -> Prompts:
    """A prompt of one token that holds these media."""
    ids = torch.ones(1, 1, dtype=torch.long)
    return Prompts(ids, ids.bool(), {}, media)


def run(backbone: Backbone, batch: Prompts, visuals: Visuals | None = None) -> Tensor:
    """The hidden states of a batch, its pictures encoded unless they are given."""
    visuals = backbone.encode(batch) if visuals is None else visuals
    return backbone(batch.ids, batch.mask, batch.token_types, visuals)


def assert_close(got: Tensor, want: Tensor, tolerance: float = HIDDEN_TOLERANCE) -> None:
    """Equal shapes, and nowhere further apart than the tolerance."""
    assert got.shape == want.shape
    assert (got.float() - want.float()).abs().max() <= tolerance


def _picture(rng: np.random.Generator, height: int | None = None, width: int | None = None) -> np.ndarray:
    sides = height or int(rng.choice([48, 56, 84])), width or int(rng.choice([56, 70, 112]))
    return rng.integers(0, 256, (*sides, 3), dtype=np.uint8)


def _clip(frames: int) -> dict[str, object]:
    return {
        "total_num_frames": frames,
        "fps": 2.0,
        "duration": frames / 2,
        "frames_indices": list(range(frames)),
    }
