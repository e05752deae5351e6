# SPDX-License-Identifier: Apache-2.0
"""Responses that grow token by token behind prompts, every prompt read once for all of them.

``generate`` of transformers reads a prompt once for each of its samples, keeps as many copies of its keys and
values, copies all of them at every token, and goes on with rows that have ended.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ixc_lightning.functional.masking import last_index
from ixc_lightning.functional.packing import next_positions
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.packing import difference, joined, share, small_trees
from ixc_lightning.models.prefix import Prefix
from ixc_lightning.models.shared_inputs import Prefill, SharedPrefix
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import Prompts


class Growth:
    """Rows that continue prompts, and what the network keeps of both.

    Args:
        backbone: one that ``grows`` has found able.
        prompts: padded on either side.
        visuals: the encoded pictures of exactly these prompts, or None for text.
        prompt_index: the prompt that each row continues; every prompt has a row.
    """

    def __init__(
        self, backbone: Backbone, prompts: Prompts, visuals: Visuals | None, prompt_index: Int[Tensor, " R"]
    ) -> None:
        grids = {} if visuals is None else visuals.grids
        positions = backbone.family.positions(
            backbone.base, prompts.ids, prompts.mask, prompts.token_types, grids
        )
        cache = DynamicCache()
        prefill = Prefill(positions, prompts.mask, cache)
        hidden = backbone(prompts.ids, prompts.mask, prompts.token_types, visuals, shared=prefill)
        self.backbone = backbone
        self.last = hidden[torch.arange(len(hidden), device=hidden.device), last_index(prompts.mask)]
        """The states behind the prompts, (B, D)."""
        self._types = tuple(prompts.token_types)
        self._axes = positions.shape[:-2]
        self._next = next_positions(positions, prompts.mask)[prompt_index]
        self._own = DynamicCache()
        self._prefix = Prefix(cache, prompts.mask, prompt_index)

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R D"]:
        """Put one more token behind every row; the states behind those."""
        ids = tokens.unsqueeze(1)
        positions = self._next.expand(*self._axes, -1).unsqueeze(-1)
        hidden = self.backbone(
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            {name: torch.zeros_like(ids) for name in self._types},
            None,
            shared=SharedPrefix(positions, self._prefix, self._own),
        )
        self._next = self._next + 1
        return hidden[:, -1]

    def keep(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with these rows alone, in the given order."""
        self._own.batch_select_indices(rows)
        self._next = self._next[rows]
        self._prefix.keep(rows)


def grows(backbone: Backbone) -> str | None:
    """Prepare a backbone for ``Growth``, unless it cannot do that.

    It must be able to read trees (``packing.share``), and a response that grows by one token after the other
    must have the states of one that is read as a whole.

    Returns:
        Why it cannot, or None if it can now.
    """
    return share(backbone) or _difference(backbone)


@torch.no_grad()
def _difference(backbone: Backbone) -> str | None:
    """How responses that grow have other states than those that are read, if they do."""
    is_training = backbone.training
    backbone.eval()
    trees = small_trees(backbone.config, next(backbone.base.parameters()).device)
    sequences = joined(trees, None)[0]
    try:
        read = backbone(sequences.ids, sequences.mask, {}, None)[sequences.response_mask]
        growth = Growth(backbone, trees.prompts, None, trees.prompt_index)
        states = torch.stack([growth.step(tokens) for tokens in trees.responses.ids.unbind(1)], dim=1)
        return difference(states[trees.responses.mask], read, "a response that grows")
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        # whatever a network says that was not made for it
        return f"{type(backbone.base).__name__} cannot grow responses behind prompts: {error}"
    finally:
        backbone.train(is_training)
