# SPDX-License-Identifier: Apache-2.0
"""InternLM-XComposer2.5 for transformers 5: the multi-modal base model, and the model that generates.

Written anew from the shapes and the behaviour of the release, on transformers' own CLIP and Llama parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, CLIPVisionModel, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from ixc_lightning.models.internlm_xcomposer2.configuration import (
    ADAPTERS_OF_MODE,
    InternLMXComposer2Config,
)
from ixc_lightning.models.internlm_xcomposer2.language import InternLMXComposer2TextModel
from ixc_lightning.models.internlm_xcomposer2.vision import InternLMXComposer2Projector
from ixc_lightning.types import InputError


@dataclass
class InternLMXComposer2Output(BaseModelOutputWithPast):
    """The base model's output.

    Attributes:
        image_hidden_states: the projected tokens of all images of the batch (N, D).
    """

    image_hidden_states: Tensor | None = None


class InternLMXComposer2PreTrainedModel(PreTrainedModel):
    """What both models share with transformers' machinery."""

    config_class = InternLMXComposer2Config
    config: InternLMXComposer2Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["InternLMXComposer2DecoderLayer", "CLIPEncoderLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InternLMXComposer2Projector):
            std = self.config.text_config.initializer_range
            initialization.normal_(module.global_separator, std=std)
            initialization.normal_(module.row_separator, std=std)


class InternLMXComposer2Model(InternLMXComposer2PreTrainedModel):
    """Token ids and pixels to hidden states: vision tower, projector, language model."""

    def __init__(self, config: InternLMXComposer2Config) -> None:
        super().__init__(config)
        self.vision_tower = CLIPVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = InternLMXComposer2Projector(config)
        self.language_model = InternLMXComposer2TextModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, image_grid_hw: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: tiles of all images (tiles, 3, side, side): of each the global view, then its tiles
                row by row.
            image_grid_hw: rows and columns of tiles of each image (images, 2).
            **kwargs: for the vision tower.

        Returns:
            ``pooler_output``: the tokens of each image, a tuple of (N, D). ``last_hidden_state``: the states
            of the vision tower's patches.
        """
        states = self.vision_tower(pixel_values, **kwargs).last_hidden_state
        images = self.multi_modal_projector.arrange(states[:, 1:], image_grid_hw)
        tokens = self.multi_modal_projector(torch.cat(images))
        return BaseModelOutputWithPooling(
            last_hidden_state=states, pooler_output=tokens.split([len(image) for image in images])
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_mask: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        mode: str = "base",
        **kwargs: Any,
    ) -> InternLMXComposer2Output:
        """The hidden states behind the final norm.

        Args:
            input_ids: token ids (B, L), ``image_token_id`` at image tokens; or else ``inputs_embeds``.
            pixel_values: see ``get_image_features``.
            image_grid_hw: see ``get_image_features``.
            attention_mask: 1 at real tokens, or a mask that transformers takes as it is.
            position_ids: (B, L).
            past_key_values: the cache to read and extend.
            inputs_embeds: embeddings (B, L, D) with those of the image tokens in place.
            image_mask: True at the image tokens of ``inputs_embeds`` (B, L); ids tell by themselves.
            mm_encoder_outputs: ``{"image": get_image_features(...)}``, in place of pixels.
            mode: ``base``, or ``write`` or ``web`` with the adapters of the causal release.
            **kwargs: for the language model.

        Raises:
            InputError: ids beyond the vocabulary, image tokens without pixels or in another number than the
                pixels make, or a mode whose adapters were not loaded.
        """
        self._check_mode(mode)
        if pixel_values is not None and mm_encoder_outputs is not None and "image" in mm_encoder_outputs:
            raise ValueError("give pixel_values or mm_encoder_outputs, not both")
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if image_grid_hw is None:
                raise InputError(
                    "pixel_values need image_grid_hw beside them: keep both outputs of the processor"
                )
            encoded = self.get_image_features(pixel_values, image_grid_hw, return_dict=True)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        features = None
        if input_ids is not None:
            inputs_embeds, image_mask, features = self._embed(input_ids, encoded, is_start=not past)
        elif image_mask is not None and inputs_embeds is not None:
            image_mask = _columns(image_mask.bool(), past, inputs_embeds.shape[1])
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_mask=image_mask,
            mode=mode,
            **kwargs,
        )
        return InternLMXComposer2Output(**outputs, image_hidden_states=features)

    def _embed(
        self, ids: Tensor, encoded: Any, *, is_start: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Embeddings with the image tokens in their places, where these are, and the tokens."""
        if is_start:
            self._check_ids(ids)
        embeddings = self.get_input_embeddings()(ids)
        if encoded is None:
            if is_start and (count := int((ids == self.config.image_token_id).sum())):
                raise InputError(
                    f"{count} image tokens (id {self.config.image_token_id}) but no pixel_values"
                )
            return embeddings, None, None
        pooled = encoded.pooler_output
        features = pooled.flatten(0, -2) if isinstance(pooled, Tensor) else torch.cat(tuple(pooled))
        mask = ids == self.config.image_token_id
        if (count := int(mask.sum())) != len(features):
            raise InputError(
                f"{count} image tokens in input_ids, but the images make {len(features)}: was the text cut, "
                "or tokenised without its images?"
            )
        features = features.to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(mask[..., None], features), mask, features

    def _check_ids(self, ids: Tensor) -> None:
        vocabulary = self.config.text_config.vocab_size
        if ids.numel() and int(ids.max()) >= vocabulary:
            raise InputError(
                f"token id {int(ids.max())} is beyond the vocabulary of {vocabulary}: the text holds a token "
                "that the tokenizer knows and the model does not, <|im_start|> say"
            )

    def _check_mode(self, mode: str) -> None:
        if mode not in ADAPTERS_OF_MODE:
            raise InputError(f"mode must be one of {', '.join(ADAPTERS_OF_MODE)}, not {mode!r}")
        there = self.config.text_config.adapter_ranks or {}
        if missing := [name for name in ADAPTERS_OF_MODE[mode] if name not in there]:
            raise InputError(
                f"mode {mode} needs the adapters {', '.join(missing)}, which this model was loaded without: "
                "convert the released causal model with adapters=keep"
            )


class InternLMXComposer2ForConditionalGeneration(InternLMXComposer2PreTrainedModel, GenerationMixin):
    """The base model with its language head."""

    def __init__(self, config: InternLMXComposer2Config) -> None:
        super().__init__(config)
        self.model = InternLMXComposer2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The language head."""
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_mask: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        mode: str = "base",
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss if ``labels`` (−100 where ignored) are given; else as the base."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_grid_hw=image_grid_hw,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_mask=image_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            mode=mode,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _columns(mask: Tensor, start: int, count: int) -> Tensor:
    """The given columns of a mask, False beyond its end: tokens that are generated are no image."""
    part = mask[:, start : start + count]
    return pad(part, (0, count - part.shape[1]))
