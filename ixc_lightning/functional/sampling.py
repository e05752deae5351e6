# SPDX-License-Identifier: Apache-2.0
"""Drawing tokens from logits by given random numbers, so that a row's draws depend on nothing but its own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniforms(rows: int, tokens: int, *, seed: int) -> Float[Tensor, "R T"]:
    """One number from [0, 1) for each token of each row, in float64, fixed by the seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, tokens, generator=generator, dtype=torch.float64)


def draw(logits: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The tokens that the numbers pick from softmax(z), by the inverse of its distribution function.

    y = min {v : Σ₍w≤v₎ π(w) > u}

    ``torch.multinomial`` draws all rows from one generator, so that a row's token changes with the rows that
    are beside it. The sum is taken in float64: in float32 the tail of a vocabulary of 152,000 tokens would
    be lost to rounding.

    Args:
        logits: −∞ for tokens that must not be drawn; a row has others too.
        uniform: from [0, 1).

    Example:
        >>> draw(torch.tensor([[0.0, 0.0, -torch.inf]]).expand(3, 3), torch.tensor([0.0, 0.4, 0.99]))
        tensor([0, 0, 1])
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = (uniform.double().unsqueeze(1) * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)
