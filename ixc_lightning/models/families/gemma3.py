# SPDX-License-Identifier: Apache-2.0
"""Gemma 3: the tokens of a picture see each other in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from ixc_lightning.models.families.base import Family

TYPES = "token_type_ids"


class Gemma3(Family):
    """Pictures are blocks, told by the types of their tokens."""

    def blocks(self, token_types: Mapping[str, Int[Tensor, "1 L"]]) -> Int[Tensor, " L"] | None:
        """Each run of picture tokens is a block; None for a row of text."""
        if TYPES not in token_types:
            return None
        is_picture = token_types[TYPES][0] == 1
        if not is_picture.any():
            return None
        starts = is_picture & ~pad(is_picture, (1, 0))[:-1]
        return torch.where(is_picture, starts.cumsum(0), -1)
