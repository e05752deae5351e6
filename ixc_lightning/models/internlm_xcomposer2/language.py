# SPDX-License-Identifier: Apache-2.0
"""The language model of InternLM-XComposer2.5: a Llama whose linear layers treat image tokens apart.

Norm, rotation, masks, attention functions, cache and gradient checkpointing are those of transformers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ixc_lightning.models.internlm_xcomposer2.configuration import InternLMXComposer2TextConfig
from ixc_lightning.models.internlm_xcomposer2.low_rank import LinearUpdates


class InternLMXComposer2RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary angles; with ``rope_type: dynamic`` the base grows with the length.

    Beyond ``max_position_embeddings`` M a sequence of L tokens gets the base θ·(f·L/M − (f − 1))^(d/(d − 2)).
    L is the length of this call alone. The rotary embeddings of transformers and of the release both remember
    the longest call so far, which makes a score depend on what was scored before; here it does not. There are
    no buffers either, which a start on the meta device would leave uninitialised.
    """

    def __init__(self, config: InternLMXComposer2TextConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, head_dim), computed in float32, in the dtype of ``hidden``."""
        rope_type = self.config.rope_parameters["rope_type"]
        if rope_type == "default":
            frequencies, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(self.config)
        else:
            # float64, or the base would lose digits that thousands of positions then multiply
            length = (position_ids.max() + 1).double()
            frequencies, scale = ROPE_INIT_FUNCTIONS[rope_type](self.config, hidden.device, seq_len=length)
        angles = position_ids[..., None].float() * frequencies.to(hidden.device, torch.float32)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scale).to(hidden.dtype), (angles.sin() * scale).to(hidden.dtype)


class InternLMXComposer2Attention(LlamaAttention):
    """Grouped-query attention with low-rank updates; query, key and value share the first half of theirs."""

    def __init__(self, config: InternLMXComposer2TextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        outputs = [layer.out_features for layer in (self.q_proj, self.k_proj, self.v_proj)]
        self.splits = outputs
        self.qkv_updates = LinearUpdates(config.hidden_size, sum(outputs), config)
        self.o_updates = LinearUpdates(outputs[0], config.hidden_size, config)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        image_mask: Tensor | None = None,
        mode: str = "base",
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, and return the output and, under ``eager``, the attention weights."""
        update = self.qkv_updates(hidden_states, image_mask, mode)
        updates = update.split(self.splits, dim=-1) if update.dim() else [update] * 3
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            (layer(hidden_states) + extra).view(heads).transpose(1, 2)
            for layer, extra in zip((self.q_proj, self.k_proj, self.v_proj), updates, strict=True)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output) + self.o_updates(output, image_mask, mode), weights


class InternLMXComposer2MLP(LlamaMLP):
    """down(silu(gate x) · up x), each of the three with its low-rank updates."""

    def __init__(self, config: InternLMXComposer2TextConfig) -> None:
        super().__init__(config)
        self.gate_updates = LinearUpdates(config.hidden_size, config.intermediate_size, config)
        self.up_updates = LinearUpdates(config.hidden_size, config.intermediate_size, config)
        self.down_updates = LinearUpdates(config.intermediate_size, config.hidden_size, config)

    def forward(self, x: Tensor, image_mask: Tensor | None = None, mode: str = "base") -> Tensor:
        """The block's output."""
        gate = self.gate_proj(x) + self.gate_updates(x, image_mask, mode)
        up = self.up_proj(x) + self.up_updates(x, image_mask, mode)
        inner = self.act_fn(gate) * up
        return self.down_proj(inner) + self.down_updates(inner, image_mask, mode)


class InternLMXComposer2DecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, config: InternLMXComposer2TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = InternLMXComposer2Attention(config, layer_idx)
        self.mlp = InternLMXComposer2MLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, image_mask: Tensor | None = None, mode: str = "base", **kwargs: Any
    ) -> Tensor:
        """The states behind the layer."""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states), image_mask=image_mask, mode=mode, **kwargs
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), image_mask, mode)


class InternLMXComposer2TextModel(LlamaPreTrainedModel):
    """Token ids or embeddings to hidden states behind the final norm.

    The padding token is the end token ``</s>``; its embedding is not trained, as in the release.
    """

    config_class = InternLMXComposer2TextConfig
    config: InternLMXComposer2TextConfig
    _no_split_modules: ClassVar = ["InternLMXComposer2DecoderLayer"]
    _can_record_outputs: ClassVar = {
        "hidden_states": InternLMXComposer2DecoderLayer,
        "attentions": InternLMXComposer2Attention,
    }

    def __init__(self, config: InternLMXComposer2TextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [InternLMXComposer2DecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = InternLMXComposer2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_mask: Tensor | None = None,
        mode: str = "base",
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers.

        Args:
            input_ids: token ids (B, L), or else ``inputs_embeds``.
            attention_mask: 1 at real tokens (B, length of keys), or a mask that transformers takes as it is.
            position_ids: (B, L); counted from the cache's length where they are left out.
            past_key_values: the cache to read and extend.
            inputs_embeds: embeddings (B, L, D).
            image_mask: True at image tokens (B, L); None for a batch without images.
            mode: ``base``, ``write`` or ``web``.
            use_cache: whether to keep a cache.
            **kwargs: for the attention function.

        Raises:
            ValueError: unless exactly one of ``input_ids`` and ``inputs_embeds`` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + past
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden = inputs_embeds
        rotation = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                image_mask=None if image_mask is None else image_mask[..., None].to(hidden.dtype),
                mode=mode,
                attention_mask=mask,
                position_embeddings=rotation,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)
