# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropies of tokens, without the tensor of all logits.

Logits of all places at once take N·V numbers, 20 GB in float32 for 64 responses of 512 tokens and a
vocabulary of 152,000. Here they exist for one chunk of places at a time, in the backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Places whose logits exist at the same time."""


class TokenLogprobs(NamedTuple):
    """What a policy thought of tokens.

    Attributes:
        logprobs: log π(yₙ | x, y₍<ₙ₎) of each token, in nats, at most 0, in float32.
        entropy: of the distribution that the token was drawn from, in nats, at least 0.
    """

    logprobs: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"]


def token_logprobs(
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> TokenLogprobs:
    """Log-probability of each token, and entropy of its distribution, under softmax(z / τ).

    log π(y) = z_y/τ − log Σᵥ exp(z_v/τ),  H = log Σᵥ exp(z_v/τ) − Σᵥ π(v) z_v/τ

    The temperature is that of the sampling: without it the probabilities are those of another distribution
    than the one that the tokens were drawn from. ``torch.nn.functional.linear_cross_entropy`` has no
    entropy, knows no soft-capped head and answers in the type of the states, too coarse for ratios.

    Args:
        hidden: states at the N places that predict the tokens.
        targets: the tokens.
        head: states to logits.
        temperature: τ, positive.
        chunk: places whose logits exist at the same time; memory beside it does not grow with V.

    Raises:
        ValueError: τ or the chunk is not positive, or there are not as many states as tokens.

    Example:
        >>> out = token_logprobs(torch.zeros(1, 2), torch.tensor([0]), torch.nn.Linear(2, 4, bias=False))
        >>> round(out.logprobs.item(), 4), round(out.entropy.item(), 4)  # uniform over four: log 4
        (-1.3863, 1.3863)
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive")

    def part(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float() / temperature
        normaliser = logits.logsumexp(dim=-1)
        chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        expected = ((logits - normaliser.unsqueeze(-1)).exp() * logits).sum(dim=-1)
        return chosen - normaliser, normaliser - expected

    return TokenLogprobs(*in_chunks(part, hidden, targets, chunk=chunk))


def in_chunks(
    part: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, ...]:
    """What a function of states and tokens gives at each place, computed for one chunk of places at a time.

    Args:
        part: states and tokens of a chunk to one value of each place, or several; without random numbers. It
            is computed again in the backward pass, so that nothing of it is kept.
        hidden: states at the N places.
        targets: the token of each place.
        chunk: places at a time.

    Returns:
        For each output of the function its values at all N places.

    Raises:
        ValueError: the chunk is not positive, or there are not as many states as tokens.

    Example:
        >>> states, tokens = torch.ones(3, 2), torch.zeros(3).long()
        >>> in_chunks(lambda states, tokens: (states.sum(1),), states, tokens, chunk=2)
        (tensor([2., 2., 2.]),)
    """
    if chunk < 1:
        raise ValueError(f"chunk {chunk} must be positive")
    if len(hidden) != len(targets):
        raise ValueError(f"{len(hidden)} states cannot predict {len(targets)} tokens")

    def recomputed(states: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return checkpoint(part, states, tokens, use_reentrant=False, preserve_rng_state=False)

    run = recomputed if torch.is_grad_enabled() else part
    chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    values = zip(*(run(states, tokens) for states, tokens in chunks), strict=True)
    return tuple(torch.cat(each) for each in values)


def in_rows(values: Float[Tensor, " N"], mask: Bool[Tensor, "R T"]) -> Float[Tensor, "R T"]:
    """Values of all real tokens, row after row, put where the mask is True; 0 elsewhere.

    Raises:
        ValueError: there are not as many values as real tokens.

    Example:
        >>> in_rows(torch.tensor([1.0, 2.0]), torch.tensor([[True, False], [True, False]])).tolist()
        [[1.0, 0.0], [2.0, 0.0]]
    """
    if len(values) != int(mask.sum()):
        raise ValueError(f"{len(values)} values do not fill {int(mask.sum())} real tokens")
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
