# SPDX-License-Identifier: Apache-2.0
"""LLaVA-OneVision: clips of different length in one batch.

The model encodes a rectangle of clips × frames and would turn the zero frames that fill up a short clip into
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ixc_lightning.models.families.base import PIXELS, Family


class LlavaOnevision(Family):
    """Clips are encoded one at a time, without the frames that only fill up."""

    def features(self, base: PreTrainedModel, kind: str, media: Mapping[str, Tensor]) -> ModelOutput:
        """Encode pictures as the model does, clips one by one."""
        if kind == "image":
            return super().features(base, kind, media)
        clips = media[PIXELS["video"]]
        each = [
            super(LlavaOnevision, self)
            .features(base, kind, {PIXELS["video"]: clip[None, :frames]})
            .pooler_output
            for clip, frames in zip(clips, _frames(clips).tolist(), strict=True)
        ]
        return ModelOutput(pooler_output=torch.cat(each, dim=1))

    def rows(self, kind: str, media: Mapping[str, Tensor]) -> Int[Tensor, " pictures"]:
        """The pictures of a sample stay together: how many it has decides whether they are tiled."""
        if kind == "image" and "batch_num_images" in media:
            return media["batch_num_images"]
        return super().rows(kind, media)


def _frames(clips: Float[Tensor, "clips frames 3 height width"]) -> Int[Tensor, " clips"]:
    """The number of frames up to the last one that is not all zero; a normalised black frame is not."""
    real = clips.flatten(2).ne(0).any(-1)
    return (real * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1)
