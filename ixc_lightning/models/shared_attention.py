# SPDX-License-Identifier: Apache-2.0
"""Attention over a row of trees: a prompt sees itself, every branch sees its prompt and itself.

Registered with transformers as the attention implementation ``shared_prefix``. It is ``sdpa`` until a forward
pass brings a ``Plan``. Then the row is cut into prompts and branches, those of like length are padded to
rectangles, and each rectangle is one call of ``scaled_dot_product_attention``: prompts causally without a
mask, branches with a mask of their own rows over [prompt, branch]. No product between two trees or two
branches is computed, and there is no mask over the whole row, which would eat up half of what sharing saves
at a prompt of 4,000 tokens. Grouped queries stay grouped where a kernel takes them with its mask.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.masking_utils import sdpa_mask

from ixc_lightning.functional.packing import Packing
from ixc_lightning.models.prefix import Prefix

NAME = "shared_prefix"
WASTE = 1.25
"""Most products of queries and keys in a rectangle, over those that are needed."""
SMALL = 2**14
"""Products that may be wasted besides: they cost less than another call."""
BEYOND = 2**40
"""A place that no query of a causal model can see."""


class Group(NamedTuple):
    """Segments of like length, as rectangles of queries and keys.

    Attributes:
        queries: places of the queries in the row; 0 where padded.
        keys: places of the keys; 0 where padded; None for prompts, whose keys are their queries.
        query_index: place of each query in its own sequence [prompt, branch]; one row if the same in all.
        key_index: place of each key in its own sequence, ``BEYOND`` where padded; one row if the same in all.
        real: whether a query is none of the padding.
    """

    queries: Int[Tensor, "n q"]
    keys: Int[Tensor, "n k"] | None
    query_index: Int[Tensor, "_ q"]
    key_index: Int[Tensor, "_ k"]
    real: Bool[Tensor, "n q"]


class Plan:
    """Who attends to whom in a row of trees, worked out once for all layers.

    Args:
        packing: where the segments lie.
        blocks: number of the block that each token of the row belongs to, −1 for none. Tokens of a block see
            each other in both directions, as those of a picture do in some families; prompts alone hold them.
    """

    def __init__(self, packing: Packing, blocks: Int[Tensor, " L"] | None = None) -> None:
        starts, lengths = packing.starts, list(packing.lengths)
        branches = Counter(packing.tree)
        for prompt, own in packing.members:
            if branches[prompt] == 1:  # it follows its prompt in the row: together they are plainly causal
                lengths[prompt], lengths[own] = lengths[prompt] + lengths[own], 0
        members = [(prompt, prompt) for prompt in range(packing.branches.start)] + packing.members
        members = [(prompt, own) for prompt, own in members if lengths[own]]
        device = packing.places.device
        self.blocks = blocks
        self.longest = max(lengths[prompt] + lengths[own] for prompt, own in packing.members)
        self.groups = [
            _group(torch.tensor([(starts[p], lengths[p], starts[s], lengths[s]) for p, s in part]), device)
            for is_prompt in (True, False)
            for part in _alike([pair for pair in members if (pair[0] == pair[1]) == is_prompt], lengths)
        ]
        real = torch.cat([group.real.flatten() for group in self.groups])
        queries = torch.cat([group.queries.flatten() for group in self.groups])
        self.order = torch.empty_like(packing.places)
        self.order[queries[real]] = real.nonzero().squeeze(1)
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor | None]] = {}

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """What is added to the products of each group, 0 or −∞; None where they are plainly causal.

        One tensor serves all layers, which keep it for the backward pass.

        Args:
            window: how many tokens a query sees at most, itself included; None for all before it.
            dtype: of the products.
        """
        if window is not None and window >= self.longest:
            window = None
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = [self._mask(group, window, dtype) for group in self.groups]
        return self._masks[window, dtype]

    def _mask(self, group: Group, window: int | None, dtype: torch.dtype) -> Tensor | None:
        blocks = self.blocks if group.keys is None else None  # branches hold no pictures
        if group.keys is None and blocks is None and window is None:
            return None
        query, key = group.query_index[:, :, None], group.key_index[:, None, :]
        seen = key <= query
        if blocks is not None:
            own = blocks[group.queries].masked_fill(~group.real, -1)
            seen = seen | ((own[:, :, None] == own[:, None, :]) & (own >= 0)[:, :, None])
        if window is not None:
            seen = seen & (key > query - window)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)
        return mask[:, None]


def shared_attention(
    module: nn.Module,
    query: Float[Tensor, "A H L d"],
    key: Float[Tensor, "A K M d"],
    value: Float[Tensor, "A K M e"],
    attention_mask: Any,
    *,
    shared_prefix: Plan | Prefix | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "A L H e"], None]:
    """Attention in the form that transformers calls.

    Args:
        module: the attention layer.
        query: of one row, A = 1, with a plan, of any number without one.
        key: with H or fewer heads.
        value: as ``key``.
        attention_mask: not looked at with a plan.
        shared_prefix: the plan of the row, or the prompts that rows of one token each continue; None for
            sequences that share nothing.
        dropout: share of the weights that are dropped.
        scaling: factor of the products; None for 1/√d.
        sliding_window: how many tokens a query sees at most. A model whose layers have windows says so here,
            because flash attention takes no mask.
        **kwargs: for ``sdpa``.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    if isinstance(shared_prefix, Prefix):
        layer: Any = module.layer_idx
        return shared_prefix.attend(layer, query, key, value, scaling=scaling, window=sliding_window), None
    return _over_trees(
        query, key, value, shared_prefix, dropout=dropout, scaling=scaling, sliding_window=sliding_window
    ), None


@torch.compiler.disable
def _over_trees(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    *,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Float[Tensor, "1 L H e"]:
    """Attention by the plan; a compiled layer leaves it out, or it would be compiled anew for every plan."""
    outputs = []
    masks = plan.masks(sliding_window, query.dtype)
    for group, mask in zip(plan.groups, masks, strict=True):
        keys = group.queries if group.keys is None else group.keys
        own_keys, own_values = _rectangle(key, keys), _rectangle(value, keys)
        is_grouped = key.shape[1] != query.shape[1] and _takes_groups(mask, own_keys, own_values)
        if not is_grouped:
            own_keys, own_values = (
                repeat_kv(states, query.shape[1] // key.shape[1]) for states in (own_keys, own_values)
            )
        attended = scaled_dot_product_attention(
            _rectangle(query, group.queries),
            own_keys,
            own_values,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=is_grouped,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
    row = embedding(plan.order, torch.cat(outputs))
    return row.view(1, len(row), query.shape[1], -1)


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _takes_groups(mask: Tensor | None, key: Tensor, value: Tensor) -> bool:
    """Whether there is a fast kernel for fewer heads of keys than of queries; on a GPU masks preclude it."""
    return key.device.type == "cpu" or use_gqa_in_sdpa(mask, key, value)


def _rectangle(states: Float[Tensor, "1 H L d"], places: Int[Tensor, "n q"]) -> Float[Tensor, "n H q d"]:
    """The states at the given places; ``embedding`` is the gather whose backward pass is fast on CPU."""
    rows = states[0].transpose(0, 1).flatten(1)
    return embedding(places, rows).unflatten(-1, (states.shape[1], -1)).transpose(1, 2)


def _alike(members: list[tuple[int, int]], lengths: list[int]) -> list[list[tuple[int, int]]]:
    """Prompts, or branches with their prompts, in groups that waste little when padded to a rectangle."""

    def sizes(pair: tuple[int, int]) -> tuple[int, int]:
        prompt, own = pair
        return 0 if prompt == own else lengths[prompt], lengths[own]

    groups: list[list[tuple[int, int]]] = []
    needed = widest = longest = 0
    for pair in sorted(members, key=sizes):
        ahead, rows = sizes(pair)
        needed, widest, longest = needed + rows * (ahead + rows), max(widest, ahead), max(longest, rows)
        rectangle = longest * (widest + longest)
        if not groups or (len(groups[-1]) + 1) * rectangle > WASTE * needed + SMALL:
            groups.append([])
            needed, widest, longest = rows * (ahead + rows), ahead, rows
        groups[-1].append(pair)
    return groups


def _group(part: Int[Tensor, "n 4"], device: torch.device) -> Group:
    """The rectangles of some segments.

    Args:
        part: start and length of the prompt, start and length of the segment; a prompt is its own.
        device: where the group is to be.
    """
    prompt_start, prompt_length, start, length = part.to(device).unsqueeze(-1).unbind(1)
    within = torch.arange(int(part[:, 3].max()), device=device)[None]
    real = within < length
    queries = (start + within) * real
    if (part[:, :2] == part[:, 2:]).all():
        return Group(queries, None, within, within, real)
    ahead = torch.arange(int(part[:, 1].max()), device=device)[None]
    there = ahead < prompt_length
    keys = torch.cat([(prompt_start + ahead) * there, queries], dim=1)
    query_index = prompt_length + within
    key_index = torch.cat([ahead.masked_fill(~there, BEYOND), query_index], dim=1)
    if (part[:, 1] == part[0, 1]).all():  # the mask depends on nothing else, so one serves all
        query_index, key_index = query_index[:1], key_index[:1]
    return Group(queries, keys, query_index, key_index, real)
