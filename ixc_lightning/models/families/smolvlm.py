# SPDX-License-Identifier: Apache-2.0
"""SmolVLM and Idefics 3: a row of tiles for each sample, filled up with tiles of zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from transformers import PreTrainedModel

from ixc_lightning.models.families.base import PIXELS, Family

NESTED = (PIXELS["image"], "pixel_attention_mask")
"""The media whose first two axes are samples and tiles."""


class Smolvlm(Family):
    """Tiles and frames, which the tower sees one by one, are its pictures."""

    def parts(
        self, base: PreTrainedModel, media: Mapping[str, Tensor], *, patches: int
    ) -> Iterator[dict[str, Tensor]]:
        """Each tile is a row; those that only fill up are left out, as the model itself does."""
        tiles = {name: media[name].flatten(0, 1) for name in NESTED if name in media}
        real = tiles[PIXELS["image"]].flatten(1).any(1)
        if not real.any():  # the model takes one of them then
            return iter([dict(media)])
        return super().parts(
            base, {name: value[real].unsqueeze(1) for name, value in tiles.items()}, patches=patches
        )
