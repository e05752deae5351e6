# SPDX-License-Identifier: Apache-2.0
"""One face over every vision-language model, and text model, of transformers.

Pictures are encoded once (``encode``) and their features are given to as many forward passes as there are
roles and responses. Everything that differs between families is in ``families``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, LogitsProcessorList

from ixc_lightning.models.adapter_files import load_adapter, save_adapter, saved_adapter
from ixc_lightning.models.adapters import (
    LoRA,
    add_adapter,
    expect_no_base,
    leave_base_out,
    merged_state,
)
from ixc_lightning.models.checkpointing import Checkpointing, checkpoint_activations
from ixc_lightning.models.compiling import Compile, check_together, compile_layers
from ixc_lightning.models.families import family_of
from ixc_lightning.models.kernels import check_attention, guard_attention, use_liger
from ixc_lightning.models.loading import is_multimodal, load_network
from ixc_lightning.models.parted import ROLES as ROLES
from ixc_lightning.models.parted import Parted
from ixc_lightning.models.quantisation import Quantisation, quantise
from ixc_lightning.models.shared_inputs import Prefill, SharedPrefix
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import InputError, Prompts

Read = TypeVar("Read")
ADAPTER = "default"
"""Name of the adapters that a backbone is built with."""


class Backbone(Parted):
    """A pre-trained network from token ids and pictures to hidden states, with or without its language head.

    Args:
        source: hub id, or a folder in transformers' layout, or one of adapters, which names its base model.
        weights: ``pretrained``, or ``random`` for fresh weights from the config alone.
        head: keep the language head; ``logits`` and generation need it.
        freeze: the ``ROLES`` that are not trained.
        dtype: type of the parameters: ``float32``, ``bfloat16`` or ``float16``.
        attention: ``sdpa``, ``flash_attention_2``, ``flash_attention_3``, ``flex_attention``, ``eager``, or
            another name that transformers knows.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them:
            ``true`` in all layers, a number k in every k-th, ``selective`` all but matrix products and
            attention.
        liger: Liger's Triton kernels for norms, rotations and gated activations.
        compile: compile the decoder's layers: ``true``, a mode of ``torch.compile``, or ``aot_eager``.
        vision_patches_at_once: most patches, squares of the vision tower's ``patch_size``, that it encodes at
            a time, of as many pictures and clips as fit and of one that is larger alone; null for all of a
            batch together. A trained tower computes each such part again in the backward pass.
        frozen_tower: whether each rank of a model that FSDP2 shards keeps a frozen vision tower and projector
            ``whole``, or a part of them, ``sharded``, and gathers them to look at pictures.
        trust_remote_code: whether code that comes with the weights may run.
        adapter: low-rank adapters to train in the place of the language model's own weights.
        quantisation: of the decoder's linear layers, ``nf4`` for 4 bits; the language model's own weights are
            not trained then. A folder of adapters brings its own.

    Raises:
        InputError: if the source cannot be loaded completely, an option is unknown, or the family is no use.
    """

    def __init__(
        self,
        source: str,
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        head: bool = False,
        freeze: Sequence[str] = ("vision", "projector"),
        dtype: str = "float32",
        attention: str = "sdpa",
        gradient_checkpointing: Checkpointing = False,
        liger: bool = False,
        compile: Compile = False,
        vision_patches_at_once: int | None = None,
        frozen_tower: Literal["whole", "sharded"] = "whole",
        trust_remote_code: bool = False,
        adapter: LoRA | None = None,
        quantisation: Quantisation | None = None,
    ) -> None:
        super().__init__()
        self.has_head = head
        check_attention(attention)
        if vision_patches_at_once is not None and vision_patches_at_once < 1:
            raise InputError(
                f"vision_patches_at_once is {vision_patches_at_once}, but must be at least 1, or null"
            )
        self.vision_patches_at_once, self.frozen_tower = vision_patches_at_once, frozen_tower
        saved = saved_adapter(source, beside=adapter) if weights == "pretrained" else None
        self.model = load_network(
            source if saved is None else saved.base,
            weights=weights,
            head=head,
            dtype=dtype,
            attention=attention,
            trust_remote_code=trust_remote_code,
        )
        self.family = family_of(self.base)
        self.is_multimodal = is_multimodal(self.config)
        self.check_family()
        self.quantisation = quantisation if saved is None else quantisation or saved.quantisation
        self.saved_as = "adapter" if adapter is None else adapter.saved_as
        if self.quantisation is not None:
            quantise(self.base, self.decoder_layers(), self.quantisation)
        if adapter is not None:
            add_adapter(self.base, self.decoder_layers(), adapter, name=ADAPTER)
        if saved is not None:
            load_adapter(self.base, saved, name=ADAPTER)
        if adapter is not None or saved is not None:
            self.adapter = ADAPTER
        if self.keeps_language:
            self.register_state_dict_post_hook(leave_base_out)
            self.register_load_state_dict_post_hook(expect_no_base)
        self.freeze(freeze)
        guard_attention(self.decoder_layers()[0], attention)
        if liger:
            use_liger(self.model)
        check_together(gradient_checkpointing, compile)
        checkpoint_activations(self.model, gradient_checkpointing)
        compile_layers(self.decoder_layers(), compile)

    def encode(self, prompts: Prompts) -> Visuals | None:
        """Encode the pictures and clips of a batch, once, and those that several rows show once for all.

        No graph is kept while vision tower and projector are both frozen.

        Args:
            prompts: the batch, not stacked. Its media are pixels and their grids by processor name
                (``functional.media.merge_media``); other outputs of a processor among them are ignored.

        Returns:
            The encoded pictures of all rows, or None for a batch of text.

        Raises:
            InputError: if the model does not take pictures, or not this kind, or pixels are bytes still.
            ValueError: the prompts do not hold one picture token for each embedding.
        """
        media = prompts.media
        if not media:
            return None
        if not self.is_multimodal:
            raise InputError(
                f"{type(self.base).__name__} is a text model, but the batch holds {', '.join(media)}"
            )
        pixels = {name: value for name, value in media.items() if name.startswith("pixel_values")}
        if any(value.dtype == torch.uint8 for value in pixels.values()):
            raise InputError(
                "pixels are bytes still: pass the batch through the datamodule's on_after_batch_transfer, as "
                "the trainer does, or ask the datamodule for its loader when no trainer runs"
            )
        roles = self.role_parameters()
        dtype = roles["vision"][0].dtype
        is_trained = any(parameter.requires_grad for parameter in roles["vision"] + roles["projector"])
        media = {**media, **{name: value.to(dtype) for name, value in pixels.items()}}
        grids = {name: media[name] for name in self.family.position_media if name in media}
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained):
            if self.vision_patches_at_once is None:
                visuals = Visuals.of(self.family.encode(self.base, media), grids)
            else:
                parts = self.family.parts(self.base, media, patches=self.vision_patches_at_once)
                visuals = Visuals.joined([self._encode_part(part) for part in parts], grids)
            return visuals.located(prompts, self.config)

    def _encode_part(self, media: Mapping[str, Tensor]) -> Visuals:
        """Encode some pictures; of their way through a trained tower nothing is kept for later."""

        def encode() -> Visuals:
            return Visuals.of(self.family.encode(self.base, media), {})

        tower = self.role_parameters()["vision"]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower):
            return checkpoint(encode, use_reentrant=False)
        return encode()

    def forward(
        self,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        token_types: Mapping[str, Int[Tensor, "B L"]],
        visuals: Visuals | None,
        *,
        shared: SharedPrefix | Prefill | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The last hidden states, behind the final norm.

        Rows may be padded on either side; the states at padding mean nothing. Nothing is kept between calls.

        Args:
            ids: token ids, 0 where masked.
            mask: True at real tokens.
            token_types: what the processor gave per token besides (``mm_token_type_ids``,
                ``token_type_ids``), 0 on responses and padding; names that the model does not know are
                ignored.
            visuals: the encoded pictures of exactly these rows, or None for text.
            shared: what a row of trees needs instead of its mask (``packing.read_trees``), or responses that
                grow behind their prompts (``growth``).
        """
        known = signature(self.base.forward).parameters
        inputs: dict[str, Any] = {name: value for name, value in token_types.items() if name in known}
        if visuals is not None:
            inputs["mm_encoder_outputs"] = visuals.encoder_outputs()
        if shared is None:
            grids = {} if visuals is None else visuals.grids
            inputs["attention_mask"] = mask
            inputs["position_ids"] = self.family.positions(self.base, ids, mask, token_types, grids)
        else:
            inputs |= shared.inputs()
        return self.base(input_ids=ids, **{"use_cache": False, **inputs}).last_hidden_state

    def logits(self, hidden: Float[Tensor, "*L D"]) -> Float[Tensor, "*L V"]:
        """The language head's logits at the given hidden states, soft-capped where the family does so.

        Raises:
            InputError: if the backbone was built without its head.
        """
        if not self.has_head:
            raise InputError("this backbone has no language head: build it with head=True")
        return self.family.logits(self.model, hidden)

    def read_logits(
        self,
        read: Callable[..., Read],
        hidden: Float[Tensor, "N D"],
        targets: Int[Tensor, " N"],
    ) -> Read:
        """What is read off the logits of tokens, chunk by chunk, in a single call.

        Sharded ranks sum gradients once for each call in which a network computes, so that a call of
        ``logits`` for each chunk would leave ranks with fewer tokens behind.

        Args:
            read: of states, tokens and a head: ``functional.logprobs.token_logprobs`` or
                ``functional.sft.predict_tokens``.
            hidden: states at the places that predict the tokens.
            targets: the tokens.

        Raises:
            InputError: if the backbone was built without its head.
        """
        return read(hidden, targets, partial(Backbone.logits, self))

    def generate(
        self,
        prompts: Prompts,
        visuals: Visuals | None,
        settings: GenerationConfig,
        processors: LogitsProcessorList | None = None,
    ) -> Int[Tensor, "B T"]:
        """Responses to the prompts, token by token with a cache of keys and values; no logits are kept.

        Args:
            prompts: padded on the left.
            visuals: the encoded pictures of exactly these rows, or None for text.
            settings: everything that decides the tokens; the network's own generation config is not asked,
                because it may hold a penalty or a filter that nobody sees.
            processors: what is done to the logits before a token is taken, by the settings.

        Returns:
            The tokens as sampled, then ``settings.pad_token_id`` behind a row's stop token.
        """
        known = signature(self.model.forward).parameters
        inputs: dict[str, Any] = {name: value for name, value in prompts.token_types.items() if name in known}
        if visuals is not None:
            inputs |= {**visuals.grids, "mm_encoder_outputs": visuals.encoder_outputs()}
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            tokens = self.model.generate(
                input_ids=prompts.ids,
                attention_mask=prompts.mask.long(),
                generation_config=settings,
                logits_processor=processors,
                synced_gpus=False,  # sharded layers are gathered as a whole, so ranks may stop apart
                **inputs,
            )
        finally:
            self.model.generation_config = own
        return tokens[:, prompts.ids.shape[1] :]

    def save_pretrained(
        self, folder: str | Path, *, extra: Mapping[str, Tensor] | None = None, max_shard_size: str = "5GB"
    ) -> None:
        """Write ``config.json`` and safetensors in transformers' own layout.

        A model with adapters is written as ``saved_as`` says: whole, with the adapters ``merged`` into its
        dequantised weights, or as an ``adapter`` apart (``adapter_files``).

        Args:
            folder: made if it does not exist.
            extra: further tensors, a reward head say, for the same files.
            max_shard_size: weights beyond this size are spread over several files and an index.

        Raises:
            ValueError: if an extra tensor has the name of one of the network's own.
        """
        if self.adapter is not None and self.saved_as == "adapter":
            self._check_fits_apart()
            save_adapter(
                self.model,
                self.base,
                folder,
                name=self.adapter,
                quantisation=self.quantisation,
                extra=extra or {},
            )
            return
        own = merged_state(self.model, self.adapter)
        if taken := own.keys() & (extra or {}).keys():
            raise ValueError(f"extra: {', '.join(sorted(taken))} would replace weights of the network")
        state = {**own, **(extra or {})}
        self.model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)

    def _check_fits_apart(self) -> None:
        trained = {"vision", "projector"} - set(self.frozen)
        if self.is_multimodal and trained:
            raise InputError(
                f"{' and '.join(sorted(trained))} are trained as a whole, and a folder of adapters cannot "
                "hold them: freeze them, or set adapter.saved_as to merged"
            )
