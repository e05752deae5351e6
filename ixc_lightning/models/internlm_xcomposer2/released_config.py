# SPDX-License-Identifier: Apache-2.0
"""The released ``config.json`` and our configuration: one from the other, in both directions."""

from __future__ import annotations

from typing import Any

from ixc_lightning.models.internlm_xcomposer2.configuration import (
    VISION_DEFAULTS,
    InternLMXComposer2Config,
    InternLMXComposer2TextConfig,
)
from ixc_lightning.types import InputError

ARCHITECTURE = "InternLMXComposer2ForCausalLM"
"""What both released models call themselves; only their weights tell the causal from the reward model."""
REWARD_TOKEN_ID = 92527
"""``[UNUSED_TOKEN_130]``, the last token of what the released reward model scores."""
PLORA_RANK = 256

_NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
_USUAL = ("hidden_act", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")


def native_config(released: dict[str, Any]) -> InternLMXComposer2Config:
    """Our configuration from a released ``config.json``.

    What the release hard-codes is the default here. A copy of reduced width names its own sizes in a block
    ``_tiny``: ``tile``, ``plora_r``, ``plora_alpha`` and ``vision_config``.

    Raises:
        InputError: a field is missing, or describes what the release has not.
    """
    tiny = released.get("_tiny", {})
    if missing := [name for name in (*_NEEDED, "rope_theta") if name not in released]:
        raise InputError(f"config.json lacks {', '.join(missing)}: is it that of the release?")
    if released.get("bias"):
        raise InputError("config.json says bias: true, but the release has no biases in its language model")
    scaling = released.get("rope_scaling") or {}
    rope: dict[str, Any] = {"rope_type": scaling.get("type", "default"), "rope_theta": released["rope_theta"]}
    if "factor" in scaling:
        rope["factor"] = float(scaling["factor"])
    rank = tiny.get("plora_r", PLORA_RANK)
    text = InternLMXComposer2TextConfig(
        **{name: released[name] for name in (*_NEEDED, *_USUAL) if name in released},
        rope_parameters=rope,
        plora_rank=rank,
        plora_alpha=tiny.get("plora_alpha", rank),
    )
    vision = {**VISION_DEFAULTS, **tiny.get("vision_config", {})}
    vision["image_size"] = tiny.get("tile", vision["image_size"])
    default = InternLMXComposer2Config.image_token_id
    config = InternLMXComposer2Config(
        text_config=text,
        vision_config=vision,
        # a reduced vocabulary ends before the unused token that stands for images in the full one
        image_token_id=min(default, text.vocab_size - 1),
    )
    config.dtype = released.get("torch_dtype") or released.get("dtype")
    return config


def released_config(config: InternLMXComposer2Config) -> dict[str, Any]:
    """A ``config.json`` as the release has it; the inverse of ``native_config``."""
    text, vision = config.text_config, config.vision_config
    rope = text.rope_parameters
    scaling = {"type": rope["rope_type"], "factor": float(rope.get("factor", 1.0))}
    released = {
        "architectures": [ARCHITECTURE],
        "auto_map": {
            "AutoConfig": "configuration_internlm_xcomposer2.InternLMXcomposer2Config",
            "AutoModel": f"modeling_internlm_xcomposer2.{ARCHITECTURE}",
            "AutoModelForCausalLM": f"modeling_internlm_xcomposer2.{ARCHITECTURE}",
        },
        "model_type": "internlm2",
        **{name: getattr(text, name) for name in (*_NEEDED, *_USUAL)},
        "attn_implementation": "eager",
        "bias": False,
        "max_length": 16384,
        "rope_scaling": None if scaling["type"] == "default" else scaling,
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": False,
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
        "use_cache": False,
    }
    sizes = {name: getattr(vision, name) for name in VISION_DEFAULTS}
    if sizes != VISION_DEFAULTS or text.plora_rank != PLORA_RANK or text.plora_alpha != text.plora_rank:
        released["_tiny"] = {
            "tile": vision.image_size,
            "plora_r": text.plora_rank,
            "plora_alpha": text.plora_alpha,
            "vision_config": sizes,
        }
    return released


def settings_of(config: InternLMXComposer2Config) -> dict[str, Any]:
    """The settings of a reward model with the released head."""
    known = config.text_config.vocab_size > REWARD_TOKEN_ID
    return {"pooling": "last", "reward_token_id": REWARD_TOKEN_ID if known else None}
