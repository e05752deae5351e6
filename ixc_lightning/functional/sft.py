# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy of supervised fine-tuning, over response tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ixc_lightning.functional.logprobs import CHUNK, in_chunks


class TokenPredictions(NamedTuple):
    """What a model thinks of response tokens, each given the true tokens before it.

    Attributes:
        losses: −log π of each token, in nats, at least 0, in float32.
        is_likeliest: whether no token is likelier than it.
    """

    losses: Float[Tensor, " N"]
    is_likeliest: Bool[Tensor, " N"]


def predicting_mask(response_mask: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """True at the places whose next token is a response token: there the model predicts the response.

    This is the one place of the package that shifts tokens by one.
    """
    return torch.nn.functional.pad(response_mask[:, 1:], (0, 1), value=False)


def predict_tokens(
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    head: Callable[[Tensor], Tensor],
    *,
    chunk: int = CHUNK,
) -> TokenPredictions:
    """What a model thinks of each response token, whose logits exist for one chunk of tokens at a time.

    ℓₙ = −log softmax(zₙ)[yₙ], in float32. The logits are computed again in the backward pass.

    Args:
        hidden: states at the N predicting places, all rows in a row.
        targets: the N response tokens.
        head: states to logits.
        chunk: tokens whose logits exist at the same time.

    Raises:
        ValueError: the chunk is not positive, or there are not as many states as tokens.

    Example:
        >>> head = torch.nn.Linear(2, 4, bias=False)
        >>> round(predict_tokens(torch.zeros(1, 2), torch.tensor([0]), head).losses.item(), 4)  # log 4
        1.3863
    """

    def part(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        return cross_entropy(logits.float(), tokens, reduction="none"), logits.argmax(dim=-1) == tokens

    return TokenPredictions(*in_chunks(part, hidden, targets, chunk=chunk))


def sft_loss(losses: Float[Tensor, " N"], *, weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the response tokens, in nats per token.

    L = Σₙ wₙ ℓₙ, ℓₙ = −log π(yₙ | x, y₍<ₙ₎)

    Args:
        losses: ℓ of the N response tokens (``predict_tokens``).
        weights: of the tokens in the mean; 1 / N each if null.

    Raises:
        ValueError: there is no response token, so that the mean is not defined.

    Example:
        >>> sft_loss(torch.tensor([1.0, 3.0])).item()
        2.0
    """
    if losses.numel() == 0:
        raise ValueError("the batch has no response token")
    return losses.mean() if weights is None else torch.dot(losses, weights)


def exact_match(is_likeliest: Bool[Tensor, " N"], response_mask: Bool[Tensor, "B L"]) -> Bool[Tensor, " B"]:
    """True for the rows all of whose response tokens are the likeliest ones.

    Each is judged given the true tokens before it.

    Args:
        is_likeliest: whether each of the N response tokens is, all rows in a row.
        response_mask: where they are in the batch.
    """
    wrong = torch.zeros_like(response_mask)
    wrong[response_mask] = ~is_likeliest
    return ~wrong.any(dim=1)


def token_rows(response_mask: Bool[Tensor, "B L"], rows: Bool[Tensor, " B"]) -> Float[Tensor, " N"]:
    """1 for the response tokens, all rows in a row, that lie in one of ``rows``; 0 for the others."""
    return rows.unsqueeze(1).expand_as(response_mask)[response_mask].float()
