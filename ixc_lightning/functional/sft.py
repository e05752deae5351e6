# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy of supervised fine-tuning, over response tokens alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def predicting_mask(response_mask: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """True at the places whose next token is a response token: there the model predicts the response.

    This is the one place of the package that shifts tokens by one.
    """
    return torch.nn.functional.pad(response_mask[:, 1:], (0, 1), value=False)


def sft_loss(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], *, weights: Float[Tensor, " N"] | None = None
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the response tokens, in nats per token, computed in float32.

    L = −(1/N) Σₙ log π(yₙ | x, y₍<ₙ₎)

    Args:
        logits: next-token logits at the N predicting places, all rows in a row.
        targets: the N response tokens.
        weights: of the tokens in the mean; 1 / N each if null.

    Raises:
        ValueError: there is no response token, so that the mean is not defined.
    """
    if targets.numel() == 0:
        raise ValueError("the batch has no response token")
    if weights is None:
        return cross_entropy(logits.float(), targets)
    return torch.dot(cross_entropy(logits.float(), targets, reduction="none"), weights)


def exact_match(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], response_mask: Bool[Tensor, "B L"]
) -> Bool[Tensor, " B"]:
    """True for the rows all of whose response tokens are the likeliest ones.

    Each is judged given the true tokens before it.

    Args:
        logits: next-token logits at the N predicting places, all rows in a row.
        targets: the N response tokens.
        response_mask: where they are in the batch.
    """
    wrong = torch.zeros_like(response_mask)
    wrong[predicting_mask(response_mask)] = logits.argmax(dim=-1) != targets
    return ~wrong.any(dim=1)


def token_rows(response_mask: Bool[Tensor, "B L"], rows: Bool[Tensor, " B"]) -> Float[Tensor, " N"]:
    """1 for the response tokens, all rows in a row, that lie in one of ``rows``; 0 for the others."""
    return rows.unsqueeze(1).expand_as(response_mask)[response_mask].float()
