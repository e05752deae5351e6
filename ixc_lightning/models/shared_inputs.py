# SPDX-License-Identifier: Apache-2.0
"""What a network of transformers is told, in the place of a mask, about tokens that share their prompts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache

from ixc_lightning.models.prefix import Prefix
from ixc_lightning.models.shared_attention import Plan


class SharedPrefix(NamedTuple):
    """What a network must be told about a row of trees besides its tokens.

    Attributes:
        positions: of the tokens, on one axis or several.
        plan: who attends to whom; or the prompts that some rows of one token each continue.
        cache: the keys and values of the tokens that those rows have had since their prompts.
    """

    positions: Int[Tensor, "*axes R L"]
    plan: Plan | Prefix
    cache: DynamicCache | None = None

    def inputs(self) -> dict[str, Any]:
        """The arguments for a network of transformers whose attention is ``NAME``."""
        length, device = self.positions.shape[-1], self.positions.device
        # transformers makes no mask where it is given one of four axes; this one takes no memory
        mask = torch.ones((), dtype=torch.bool, device=device).expand(1, 1, length, length)
        inputs = {"attention_mask": mask, "position_ids": self.positions, "shared_prefix": self.plan}
        return inputs if self.cache is None else {**inputs, "past_key_values": self.cache, "use_cache": True}


class Prefill(NamedTuple):
    """What a network must be told to keep the keys and values of prompts.

    Attributes:
        positions: of the tokens, on one axis or several.
        mask: True at real tokens.
        cache: an empty one.
    """

    positions: Int[Tensor, "*axes B P"]
    mask: Bool[Tensor, "B P"]
    cache: DynamicCache

    def inputs(self) -> dict[str, Any]:
        """The arguments for a network of transformers."""
        return {
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
