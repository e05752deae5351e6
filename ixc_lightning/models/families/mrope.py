# SPDX-License-Identifier: Apache-2.0
"""Families with rotary positions of three axes (time, height, width): Qwen2-VL to Qwen3-VL and their kin.

A picture of h × w tokens advances the position by max(h, w) only, so positions depend on the grids. The model
computes them by itself when none are given, but then keeps ``rope_deltas`` as state; given ones leave none.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from ixc_lightning.models.families.base import Family
from ixc_lightning.types import InputError

TYPES = "mm_token_type_ids"


class Mrope(Family):
    """Positions come from the model's own ``get_rope_index``."""

    position_media = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")

    def positions(
        self,
        base: PreTrainedModel,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        token_types: Mapping[str, Int[Tensor, "B L"]],
        media: Mapping[str, Tensor],
    ) -> Int[Tensor, "3 B L"]:
        """Positions of three axes; those of text are the same on all three.

        Raises:
            InputError: if there are pictures but no ``mm_token_type_ids``, which tell pictures from text.
        """
        if not media:
            return super().positions(base, ids, mask, token_types, media).expand(3, -1, -1)
        if TYPES not in token_types:
            raise InputError(
                f"{type(base).__name__} needs {TYPES} beside its pictures: keep that output of the processor"
            )
        known = signature(base.get_rope_index).parameters
        grids = {name: value for name, value in media.items() if name in known}
        return base.get_rope_index(ids, attention_mask=mask, mm_token_type_ids=token_types[TYPES], **grids)[0]

    def rows(self, kind: str, media: Mapping[str, Tensor]) -> Int[Tensor, " pictures"]:
        """The patches of each picture, which the processor has cut: time × height × width of its grid."""
        return media[f"{kind}_grid_thw"].prod(-1)
