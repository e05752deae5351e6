# SPDX-License-Identifier: Apache-2.0
"""InternLM-XComposer2.5: the tiles of all pictures one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor

from ixc_lightning.models.families.base import Family


class InternLMXComposer2(Family):
    """Pictures and clips, which are one tall picture, of a global view and rows × columns tiles."""

    def rows(self, kind: str, media: Mapping[str, Tensor]) -> Int[Tensor, " pictures"]:
        """The tiles of each picture, and its global view."""
        return media["image_grid_hw"].prod(-1) + 1
