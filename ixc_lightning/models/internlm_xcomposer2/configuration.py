# SPDX-License-Identifier: Apache-2.0
"""Configurations of InternLM-XComposer2.5: the language model's, and that of the whole with its vision tower.

The released ``config.json`` describes the language model only and leaves everything visual to constants in
its code; here both parts are written down. The defaults are the 7B model.
"""

from __future__ import annotations

from typing import Any, ClassVar, no_type_check

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig

ADAPTERS_OF_MODE: dict[str, tuple[str, ...]] = {"base": (), "write": ("sft", "dpo"), "web": ("web",)}
"""The modes that the causal model was released with, and the adapters that each adds on every token."""

VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 560,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
}
ROPE_DEFAULTS: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1_000_000.0}


@no_type_check  # `strict` checks the fields; checkers of calls would refuse the further ones that it takes
@strict
class InternLMXComposer2TextConfig(LlamaConfig):
    """The language model: a Llama with low-rank updates on image tokens (PLoRA) at its linear layers.

    Attributes:
        plora_rank: rank r of the updates on image tokens.
        plora_alpha: the updates are scaled by alpha / r.
        plora_dropout: dropout at the input of the updates in training mode; the release trains with 0.05.
        adapter_ranks: ranks of the further adapters, by name (``sft``, ``dpo``, ``web``), that are there.
    """

    model_type = "internlm_xcomposer2_text"
    base_config_key = "text_config"
    base_model_tp_plan = None  # a plan that shards the linear layers would have to shard their updates too

    vocab_size: int = 92544
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 24576
    rms_norm_eps: float = 1e-5
    pad_token_id: int | None = 2
    plora_rank: int = 256
    plora_alpha: int | float = 256
    plora_dropout: int | float = 0.0
    adapter_ranks: dict[str, int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the released rotary embedding where none is given."""
        given = kwargs.get("rope_scaling") or "rope_theta" in kwargs
        if self.rope_parameters is None and not given:  # type: ignore[has-type]
            self.rope_parameters = dict(ROPE_DEFAULTS)
        super().__post_init__(**kwargs)


@no_type_check  # `strict` checks the fields; checkers of calls would refuse the further ones that it takes
@strict
class InternLMXComposer2Config(PretrainedConfig):
    """The vision-language model.

    Attributes:
        text_config: the language model's configuration, or its fields.
        vision_config: a CLIP vision tower's configuration, or its fields; ``image_size`` is a tile's side.
        image_token_id: the id that stands for one image token, an unused one of the vocabulary.
    """

    model_type = "internlm_xcomposer2"
    sub_configs: ClassVar = {"text_config": InternLMXComposer2TextConfig, "vision_config": CLIPVisionConfig}

    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 92528
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the parts' configurations from their fields."""
        if not isinstance(self.text_config, PretrainedConfig):
            self.text_config = InternLMXComposer2TextConfig(**(self.text_config or {}))
        if not isinstance(self.vision_config, PretrainedConfig):
            self.vision_config = CLIPVisionConfig(**{**VISION_DEFAULTS, **(self.vision_config or {})})
        super().__post_init__(**kwargs)
