# SPDX-License-Identifier: Apache-2.0
"""Attention of tokens that continue prompts, whose keys and values are kept once for all that continue them.

A row that grows behind its prompt has one query. Those of the rows of a prompt are multiplied with the
prompt's keys together, as one matrix, and each with its own row's keys; the two softmaxes are then joined.
Plain attention over a cache that repeats the prompt reads the prompt's keys and values once a row, most of
what a step of decoding reads from memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache


class Partial(NamedTuple):
    """Attention over some of the keys, not yet divided by the sum of its weights.

    Attributes:
        output: Σ exp(s − m) v.
        total: Σ exp(s − m).
        highest: m, the highest of the products s.
    """

    output: Float[Tensor, "... d"]
    total: Float[Tensor, "... 1"]
    highest: Float[Tensor, "... 1"]


class Prefix:
    """The keys and values of prompts in every layer, and which rows continue which prompt.

    Args:
        cache: what the prompts left; it may be forgotten afterwards.
        mask: True at the prompts' real tokens.
        prompt_index: the prompt of each row.
    """

    def __init__(
        self, cache: DynamicCache, mask: Bool[Tensor, "B P"], prompt_index: Int[Tensor, " R"]
    ) -> None:
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]
        self.mask = mask
        self.prompt_index = prompt_index
        self._place()

    def keep(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with these rows alone, in the given order; prompts that none continues are forgotten."""
        self.prompt_index = self.prompt_index[rows]
        self._place()

    def _place(self) -> None:
        """Find out where the queries of each prompt's rows go together."""
        alive, prompt_index = self.prompt_index.unique(return_inverse=True)
        if len(alive) < len(self.mask):
            self.layers = [(keys[alive], values[alive]) for keys, values in self.layers]
            self.mask, self.prompt_index = self.mask[alive], prompt_index
        order = prompt_index.argsort(stable=True)
        counts = prompt_index.bincount(minlength=len(alive))
        within = torch.arange(len(order), device=order.device)
        within = within - (counts.cumsum(0) - counts).repeat_interleave(counts)
        width = int(counts.max())
        # prompts with fewer rows than others repeat row 0, whose answer there is never looked at
        self.slots = torch.zeros(len(alive), width, dtype=torch.long, device=order.device)
        self.slots[prompt_index[order], within] = order
        self.places = torch.empty_like(order)
        self.places[order] = prompt_index[order] * width + within

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "R H q d"],
        key: Float[Tensor, "R K t d"],
        value: Float[Tensor, "R K t e"],
        *,
        scaling: float | None,
        window: int | None,
    ) -> Float[Tensor, "R q H e"]:
        """Attention of the newest token of each row over its prompt and over the row itself.

        Args:
            layer: number of the layer.
            query: of the newest tokens, q = 1.
            key: of the rows' own tokens, the newest one included.
            value: as ``key``.
            scaling: factor of the products; None for 1/√d.
            window: how many tokens a query sees at most, itself included; None for all before it.

        Raises:
            ValueError: there is more than one query a row.
        """
        if query.shape[2] != 1:
            raise ValueError(f"rows grow by one token at a time, not by {query.shape[2]}")
        keys, values = self.layers[layer]
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        grouped = query.squeeze(2).unflatten(1, (key.shape[1], -1))
        own = _partial(grouped, key, value, self._own(key.shape[2], window, key.device))
        width = self.slots.shape[1]
        together = grouped[self.slots].transpose(1, 2).flatten(2, 3)
        ahead = _partial(together, keys, values, self._ahead(key.shape[2], window))
        ahead = Partial(
            *(part.unflatten(2, (width, -1)).transpose(1, 2).flatten(0, 1)[self.places] for part in ahead)
        )
        return _joined(own, ahead).to(query.dtype).flatten(1, 2).unsqueeze(1)

    def _own(self, length: int, window: int | None, device: torch.device) -> Bool[Tensor, "1 1 1 t"] | None:
        """Which of the rows' own tokens the newest one sees; None for all."""
        if window is None or window >= length:
            return None
        return (torch.arange(length, device=device) >= length - window)[None, None, None]

    def _ahead(self, length: int, window: int | None) -> Bool[Tensor, "B 1 1 P"]:
        """Which tokens of the prompts the newest token of a row of that length sees."""
        seen = self.mask
        if window is not None:
            behind = self.mask.flip(1).long().cumsum(dim=1).flip(1)  # 1 at a prompt's last token
            seen = seen & (behind + length <= window)
        return seen[:, None, None]


def _partial(
    query: Float[Tensor, "N K q d"],
    key: Float[Tensor, "N K k d"],
    value: Float[Tensor, "N K k e"],
    seen: Bool[Tensor, "_ 1 1 k"] | None,
) -> Partial:
    products = (query @ key.transpose(-1, -2)).float()
    if seen is not None:
        products = products.masked_fill(~seen, -torch.inf)
    # a prompt may lie outside of the window as a whole: then all weights are 0, and not 0/0
    highest = products.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    weights = (products - highest).exp()
    return Partial((weights.to(value.dtype) @ value).float(), weights.sum(dim=-1, keepdim=True), highest)


def _joined(one: Partial, other: Partial) -> Float[Tensor, "R K g e"]:
    """Attention over the keys of both: Σ exp(s) v / Σ exp(s)."""
    highest = one.highest.maximum(other.highest)
    left, right = (one.highest - highest).exp(), (other.highest - highest).exp()
    return (left * one.output + right * other.output) / (left * one.total + right * other.total)
