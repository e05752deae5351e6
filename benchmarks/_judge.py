# SPDX-License-Identifier: Apache-2.0
"""A reward model with fresh weights, and prompts and responses of given lengths for it."""

from __future__ import annotations

import tempfile

import torch
from transformers import PretrainedConfig

from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.tiny import tiny_config, tiny_tokenizer
from ixc_lightning.types import Prompts, Responses

PIXELS, PATCH, FOLD = 448, 14, 0.5
PICTURE_TOKENS = int(PIXELS // PATCH * FOLD) ** 2
VOCABULARY = 2048


def build_config(*, layers: int, width: int) -> PretrainedConfig:
    """Of an InternVL with proportions like those of a 7B model; its tower is small."""
    config = tiny_config(tiny_tokenizer())
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = width, layers, 4 * width
    text.num_attention_heads, text.num_key_value_heads = width // 64, width // 128
    text.layer_types = ["full_attention"] * layers
    text.vocab_size, text.max_position_embeddings = VOCABULARY, 16_384
    text.initializer_range = vision.initializer_range = width**-0.5
    vision.hidden_size, vision.intermediate_size = 112, 448
    vision.image_size, vision.patch_size = [PIXELS, PIXELS], [PATCH, PATCH]
    config.downsample_ratio, config.image_seq_length = FOLD, PICTURE_TOKENS
    return config


def build_judge(*, layers: int, width: int, dtype: str = "float32") -> RewardModel:
    """A reward model of that config; its tower is frozen."""
    with tempfile.TemporaryDirectory() as folder:
        build_config(layers=layers, width=width).save_pretrained(folder)
        torch.manual_seed(0)
        return RewardModel(folder, weights="random", dtype=dtype)


def prompts_of(lengths: list[int], judge: RewardModel | Backbone, *, kind: str) -> Prompts:
    """Prompts of so many tokens, with a picture each if the kind is ``image``."""
    ids, mask = _tokens(lengths)
    if kind == "text":
        return Prompts(ids, mask, {}, {})
    backbone = judge if isinstance(judge, Backbone) else judge.backbone
    ids[:, 1 : 1 + PICTURE_TOKENS] = backbone.config.image_token_id
    return Prompts(ids, mask, {}, {"pixel_values": torch.randn(len(lengths), 3, PIXELS, PIXELS)})


def responses_of(lengths: list[int]) -> Responses:
    """Responses of so many tokens."""
    return Responses(*_tokens(lengths))


def _tokens(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return torch.randint(300, VOCABULARY, mask.shape) * mask, mask
