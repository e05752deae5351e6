# SPDX-License-Identifier: Apache-2.0
"""One face over every vision-language model, and text model, of transformers.

Pictures are encoded once (``encode``) and their features are given to as many forward passes as there are
roles and responses. Everything that differs between families is in ``families``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from ixc_lightning.models.adapter_files import load_adapter, save_adapter, saved_adapter
from ixc_lightning.models.adapters import (
    LoRA,
    adapter_weights,
    add_adapter,
    expect_no_base,
    leave_base_out,
    merged_state,
)
from ixc_lightning.models.families import family_of
from ixc_lightning.models.loading import is_multimodal, load_network
from ixc_lightning.models.parts import longest_list, parameters_of
from ixc_lightning.models.quantisation import Quantisation, quantise
from ixc_lightning.models.shared_attention import SharedPrefix
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import InputError, Prompts

ROLES = ("vision", "projector", "language")
"""The parts of a backbone that are frozen or trained as a whole."""
ADAPTER = "default"
"""Name of the adapters that a backbone is built with."""


class Backbone(nn.Module):
    """A pre-trained network from token ids and pictures to hidden states, with or without its language head.

    Args:
        source: hub id, or a folder in transformers' layout, or one of adapters, which names its base model.
        weights: ``pretrained``, or ``random`` for fresh weights from the config alone.
        head: keep the language head; ``logits`` and generation need it.
        freeze: the ``ROLES`` that are not trained.
        dtype: type of the parameters: ``float32``, ``bfloat16`` or ``float16``.
        attention: attention implementation, by its name in transformers.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        trust_remote_code: whether code that comes with the weights may run.
        adapter: low-rank adapters to train in the place of the language model's own weights.
        quantisation: of the decoder's linear layers, ``nf4`` for 4 bits; the language model's own weights are
            not trained then.

    Raises:
        InputError: if the source cannot be loaded completely, an option is unknown, or the family is no use.
    """

    adapter: str | None = None
    """Name of the adapters that the network speaks through, if it has some."""

    def __init__(
        self,
        source: str,
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        head: bool = False,
        freeze: Sequence[str] = ("vision", "projector"),
        dtype: str = "float32",
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        adapter: LoRA | None = None,
        quantisation: Quantisation | None = None,
    ) -> None:
        super().__init__()
        self.has_head = head
        saved = saved_adapter(source, beside=adapter) if weights == "pretrained" else None
        self.model: PreTrainedModel = load_network(
            source if saved is None else saved.base,
            weights=weights,
            head=head,
            dtype=dtype,
            attention=attention,
            trust_remote_code=trust_remote_code,
        )
        self.family = family_of(self.base)
        self.is_multimodal = is_multimodal(self.config)
        self._check_family()
        self.quantisation = quantisation
        self.saved_as = "adapter" if adapter is None else adapter.saved_as
        if quantisation is not None:
            quantise(self.base, self.decoder_layers(), quantisation)
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
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
            # set along with it for the reentrant kind only; it would grow a graph through a frozen tower
            self.model.disable_input_require_grads()

    @property
    def base(self) -> PreTrainedModel:
        """The multi-modal network without its language head."""
        return self.model.base_model if self.has_head else self.model

    @property
    def config(self) -> PretrainedConfig:
        """The network's config."""
        return self.model.config

    @property
    def keeps_language(self) -> bool:
        """Whether the language model's own weights stay as they are, whatever ``freeze`` says."""
        return self.adapter is not None or self.quantisation is not None

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""
        return self.config.get_text_config().hidden_size

    def encode(self, media: Mapping[str, Tensor]) -> Visuals | None:
        """Encode the pictures and clips of a batch, once.

        No graph is kept while vision tower and projector are both frozen.

        Args:
            media: pixels and their grids by processor name, all pictures of the batch in row order along the
                first axis (``functional.media.merge_media``). Other outputs of a processor in it are ignored.

        Returns:
            The encoded pictures, or None for a batch of text.

        Raises:
            InputError: if the model does not take pictures, or not this kind, or pixels are bytes still.
        """
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
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained):
            outputs = self.family.encode(
                self.base, {**media, **{name: value.to(dtype) for name, value in pixels.items()}}
            )
        grids = {name: media[name] for name in self.family.position_media if name in media}
        return Visuals.of(outputs, grids)

    def forward(
        self,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        token_types: Mapping[str, Int[Tensor, "B L"]],
        visuals: Visuals | None,
        *,
        shared: SharedPrefix | None = None,
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
            shared: what a row of trees needs instead of its mask (``packing.read_trees``).
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
        return self.base(input_ids=ids, use_cache=False, **inputs).last_hidden_state

    def logits(self, hidden: Float[Tensor, "*L D"]) -> Float[Tensor, "*L V"]:
        """The language head's logits at the given hidden states, soft-capped where the family does so.

        Raises:
            InputError: if the backbone was built without its head.
        """
        if not self.has_head:
            raise InputError("this backbone has no language head: build it with head=True")
        return self.family.logits(self.model, hidden)

    def generate(
        self, prompts: Prompts, visuals: Visuals | None, settings: GenerationConfig
    ) -> Int[Tensor, "B T"]:
        """Responses to the prompts, token by token with a cache of keys and values; no logits are kept.

        Args:
            prompts: padded on the left.
            visuals: the encoded pictures of exactly these rows, or None for text.
            settings: everything that decides the tokens; the network's own generation config is not asked,
                because it may hold a penalty or a filter that nobody sees.

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
                synced_gpus=False,  # sharded layers are gathered as a whole, so ranks may stop apart
                **inputs,
            )
        finally:
            self.model.generation_config = own
        return tokens[:, prompts.ids.shape[1] :]

    def freeze(self, roles: Sequence[str]) -> None:
        """Freeze exactly these ``ROLES`` and train all others; frozen modules also stay in evaluation mode.

        Of a language model with adapters they alone are trained, and of a quantised one without them nothing.

        Raises:
            InputError: if a role is unknown.
        """
        if unknown := set(roles) - set(ROLES):
            raise InputError(f"freeze: {', '.join(sorted(unknown))} is none of {', '.join(ROLES)}")
        self.frozen = tuple(roles)
        adapters = set() if self.adapter is None else {*adapter_weights(self.base, self.adapter).values()}
        for role, parameters in self.role_parameters().items():
            for parameter in parameters:
                is_kept = role == "language" and self.keeps_language and parameter not in adapters
                parameter.requires_grad_(role not in roles and not is_kept)
        self.train(self.training)

    def role_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each role; a projector that sits inside the tower is part of that as well."""
        vision = self.family.vision(self.base)
        projector = [part for part in self.family.projector(self.base) if isinstance(part, nn.Module)]
        inner = [module for module in self.base.children() if module not in vision + projector]
        outer = (
            [module for module in self.model.children() if module is not self.base] if self.has_head else []
        )
        return {"vision": vision, "projector": projector, "language": inner + outer}

    def role_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each role, every parameter in exactly one; embeddings and head are language."""
        projector = parameters_of(self.family.projector(self.base))
        taken = {id(parameter) for parameter in projector}
        vision = [
            parameter
            for parameter in parameters_of(self.family.vision(self.base))
            if id(parameter) not in taken
        ]
        taken |= {id(parameter) for parameter in vision}
        language = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        return {"vision": vision, "projector": projector, "language": language}

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode, except in frozen roles, whose dropout stays off."""
        super().train(mode)
        for role, modules in self.role_modules().items():  # the projector after the tower that may hold it
            for module in modules:
                module.train(mode and role not in self.frozen)
        return self

    def decoder_layers(self) -> list[nn.Module]:
        """The layers of the language model, first to last, for sharding."""
        return longest_list(self.role_modules()["language"])

    def vision_blocks(self) -> list[nn.Module]:
        """The blocks of the vision tower, first to last, for sharding; none in a text model."""
        return longest_list(self.role_modules()["vision"])

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
            save_adapter(self.model, self.base, folder, name=self.adapter, extra=extra or {})
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

    def _check_family(self) -> None:
        if not self.is_multimodal:
            return
        name = type(self.base).__name__
        if "mm_encoder_outputs" not in signature(self.base.forward).parameters:
            raise InputError(
                f"{name} cannot be given encoded pictures: upgrade to transformers>=5.23, or take another"
            )
        parts = self.role_modules()
        if missing := [role for role in ("vision", "projector") if not parts[role]]:
            known = ", ".join(child for child, _ in self.base.named_children())
            raise InputError(f"no {' and no '.join(missing)} was found among the parts of {name}: {known}")
