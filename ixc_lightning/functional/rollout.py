# SPDX-License-Identifier: Apache-2.0
"""Rows of a rollout: prompts stacked, responses cut behind their stop tokens, and the seed of each draw."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ixc_lightning.types import Prompts

SEED_BYTES = 7  # a seed of 56 bits is a positive number in every generator


def stack_prompts(prompts: Prompts, *, times: int) -> Prompts:
    """The prompts ``times`` times, all rows and then all again; ``media`` stays that of the rows once."""
    return Prompts(
        prompts.ids.repeat(times, 1),
        prompts.mask.repeat(times, 1),
        {name: types.repeat(times, 1) for name, types in prompts.token_types.items()},
        prompts.media,
    )


def take_rows(prompts: Prompts, rows: Int[Tensor, " rows"]) -> Prompts:
    """Some rows of the prompts, in the given order; ``media`` stays that of all."""
    types = {name: types[rows] for name, types in prompts.token_types.items()}
    return Prompts(prompts.ids[rows], prompts.mask[rows], types, prompts.media)


def stack_rows(parts: Sequence[Int[Tensor, "_ _"]]) -> Int[Tensor, "R T"]:
    """The rows of all parts as one tensor, those of shorter parts filled up with 0 on the right."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1])) for part in parts])


def until_stop(
    tokens: Int[Tensor, "R T"], *, stop_tokens: Sequence[int]
) -> tuple[Bool[Tensor, "R T"], Bool[Tensor, " R"]]:
    """The mask of real response tokens, and which rows have ended.

    Real are the tokens up to and including the first stop token, whatever follows it, and all tokens of a row
    without one. Padding is not looked for: its id may be that of a stop token.

    Example:
        >>> mask, ended = until_stop(torch.tensor([[5, 1, 1], [5, 6, 7]]), stop_tokens=[1])
        >>> mask.tolist(), ended.tolist()
        ([[True, True, False], [True, True, True]], [True, False])
    """
    stops = torch.isin(tokens, torch.tensor(stop_tokens, device=tokens.device))
    before = stops.cumsum(dim=1) - stops.long()
    return before == 0, stops.any(dim=1)


def length_penalty(lengths: Int[Tensor, " R"], *, free: int, limit: int) -> Float[Tensor, " R"]:
    """The soft penalty of overlong responses, from −1 to 0: −clip((T − free) / (limit − free), 0, 1).

    Yu et al. 2025, §3.4 (arXiv 2503.14476), with ``free`` = their maximum less their cache.

    Args:
        lengths: T, tokens of each response.
        free: tokens that cost nothing.
        limit: tokens from which the whole penalty is due.

    Raises:
        ValueError: ``free`` is not below ``limit``.

    Example:
        >>> length_penalty(torch.tensor([2, 3, 4, 9]), free=2, limit=4).tolist()
        [0.0, -0.5, -1.0, -1.0]
    """
    if free >= limit:
        raise ValueError(f"free is {free}, but must be below limit, {limit}")
    over = (lengths.float() - free) / (limit - free)
    return 0.0 - over.clamp(0, 1)


def rollout_seed(seed: int, *, rank: int, iteration: int) -> int:
    """The seed of one rank's draws in one iteration: the same on every run, another for every other place.

    Sums such as seed + rank would give rank 1 of one run the draws of rank 0 of the next; a hash does not.
    """
    text = f"{seed}/{rank}/{iteration}".encode()
    return int.from_bytes(blake2b(text, digest_size=SEED_BYTES).digest(), "big")
