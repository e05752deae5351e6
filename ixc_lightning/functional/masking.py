# SPDX-License-Identifier: Apache-2.0
"""Joining, pooling and averaging under masks. Every ``*_mask`` is Bool and True marks a real token.

Nothing here looks at token ids to find padding, and nothing reads position ``-1``: a padding token may be
equal to an end-of-turn token, and a row may be padded on either side.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ixc_lightning.types import Prompts, Responses, Sequences


def join(prompts: Prompts, responses: Responses) -> Sequences:
    """Prompt and response of each row as one sequence without a gap, padded on the right.

    The padding of both inputs may be on either side, and is left out: row b of the result holds the real
    tokens of prompt b, then those of response b, then zeros up to the longest row.

    Raises:
        ValueError: prompts and responses have different numbers of rows.
    """
    if prompts.ids.shape[0] != responses.ids.shape[0]:
        raise ValueError(
            f"{prompts.ids.shape[0]} prompts cannot be joined with {responses.ids.shape[0]} responses"
        )
    mask = torch.cat([prompts.mask, responses.mask], dim=1)
    order = _real_first(mask)
    answer = torch.cat([torch.zeros_like(prompts.mask), responses.mask], dim=1)
    mask = mask.gather(1, order)

    def reorder(left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([left, right], dim=1).gather(1, order).masked_fill(~mask, 0)

    return Sequences(
        ids=reorder(prompts.ids, responses.ids),
        mask=mask,
        response_mask=answer.gather(1, order),
        token_types={
            name: reorder(types, torch.zeros_like(responses.ids))
            for name, types in prompts.token_types.items()
        },
    )


def pad_left(prompts: Prompts) -> Prompts:
    """The prompts with their padding on the left, cut to the longest row, as generation needs them.

    Padding may have been on either side. The media are passed on.
    """
    order = _real_first(prompts.mask.flip(1)).flip(1)
    order = prompts.mask.shape[1] - 1 - order
    mask = prompts.mask.gather(1, order)

    def reorder(tokens: Tensor) -> Tensor:
        return tokens.gather(1, order).masked_fill(~mask, 0)

    types = {name: reorder(value) for name, value in prompts.token_types.items()}
    return Prompts(reorder(prompts.ids), mask, types, prompts.media, prompts.shows)


def mean_pool(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Average of the hidden states of all real tokens, prompt and pictures included, in float32.

    hₘ = Σₜ mₜ hₜ / Σₜ mₜ, the pooling of the InternLM-XComposer2.5-Reward paper, §3 (arXiv 2501.12368).

    Raises:
        ValueError: a row has no real token.
    """
    _require_tokens(mask)
    weights = mask.float() / mask.sum(dim=1, keepdim=True)
    return torch.einsum("bl,bld->bd", weights, hidden.float().masked_fill(~mask.unsqueeze(-1), 0.0))


def last_pool(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Hidden state of the last real token, found by the mask, in float32.

    Raises:
        ValueError: a row has no real token.
    """
    _require_tokens(mask)
    return hidden[torch.arange(len(hidden), device=hidden.device), last_index(mask)].float()


def token_pool(
    hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], ids: Int[Tensor, "B L"], *, token_id: int
) -> Float[Tensor, "B D"]:
    """Hidden state of the last real occurrence of one token, in float32: a reward token, for example.

    Raises:
        ValueError: a row does not hold the token, as happens when it was truncated away.
    """
    found = mask & (ids == token_id)
    missing = (~found.any(dim=1)).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"rows {missing} do not hold the reward token {token_id}; was it appended to the response?"
        )
    return last_pool(hidden, found)


def last_index(mask: Bool[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """Index of the last True of each row; 0 for a row that has none."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask * places).amax(dim=1)


def _real_first(mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B K"]:
    """Indices that bring the real tokens of each row to the front, in order, cut to the longest row."""
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : int(mask.sum(dim=1).max())]


def _require_tokens(mask: Bool[Tensor, "B L"]) -> None:
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"rows {empty} have no real token to pool")
