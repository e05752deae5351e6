# SPDX-License-Identifier: Apache-2.0
"""The ordinary vision-language model of transformers: what a family does unless its own file differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ixc_lightning.types import InputError

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The processor's name of the pixels of each kind of picture."""


class Family:
    """Where the parts of a model sit, how its pictures are encoded, and which positions its tokens have.

    A family has no state: every method is given the transformers *base model* (the multi-modal one, without
    language head).
    """

    vision_names = ("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "video_tower")
    projector_names = (
        "multi_modal_projector",
        "connector",
        "aligner",
        "embed_vision",
        "image_newline",  # a bare parameter, part of the features of LLaVA-OneVision
        "visual.merger",
        "visual.deepstack_merger_list",
    )
    position_media: tuple[str, ...] = ()
    """The media that ``positions`` needs, by processor name."""

    def vision(self, base: PreTrainedModel) -> list[nn.Module]:
        """The vision towers; a projector inside a tower is part of both lists."""
        return [part for part in _attributes(base, self.vision_names) if isinstance(part, nn.Module)]

    def projector(self, base: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        """The modules, and bare parameters, that turn tower states into token embeddings."""
        return list(_attributes(base, self.projector_names))

    def encode(self, base: PreTrainedModel, media: Mapping[str, Tensor]) -> dict[str, ModelOutput]:
        """Encode the pictures and clips.

        Returns:
            By kind, ``image`` and ``video``, what the model's own ``get_<kind>_features`` gives.

        Raises:
            InputError: if the family does not take this kind of picture.
        """
        return {kind: self.features(base, kind, media) for kind, pixels in PIXELS.items() if pixels in media}

    def features(self, base: PreTrainedModel, kind: str, media: Mapping[str, Tensor]) -> ModelOutput:
        """Encode one kind of picture with those of the media that the model's encoder knows."""
        encoder = getattr(base, f"get_{kind}_features", None)
        if encoder is None:
            raise InputError(
                f"{type(base).__name__} takes no {kind}s, but the batch holds {PIXELS[kind]}: "
                f"leave {kind} samples out, or choose another model"
            )
        known = signature(encoder).parameters
        return encoder(**{name: value for name, value in media.items() if name in known}, return_dict=True)

    def positions(
        self,
        base: PreTrainedModel,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        token_types: Mapping[str, Int[Tensor, "B L"]],
        media: Mapping[str, Tensor],
    ) -> Int[Tensor, "*rows B L"]:
        """Position ids that count real tokens from 0, so that padding on either side leaves them alone."""
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    def blocks(self, token_types: Mapping[str, Int[Tensor, "1 L"]]) -> Int[Tensor, " L"] | None:
        """Number of the block of each token, −1 for none, whose tokens see each other in both directions.

        None where every token sees only those before it.
        """
        return None

    def logits(self, network: PreTrainedModel, hidden: Float[Tensor, "*L D"]) -> Float[Tensor, "*L V"]:
        """Apply the language head, and the soft cap c·tanh(z / c) where the text config has one."""
        logits = network.get_output_embeddings()(hidden)
        cap = getattr(network.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _attributes(base: PreTrainedModel, names: tuple[str, ...]) -> Iterator[nn.Module | nn.Parameter]:
    for name in names:
        part: object = base
        for step in name.split("."):
            part = getattr(part, step, None)
        if isinstance(part, (nn.Module, nn.Parameter)):
            yield part
