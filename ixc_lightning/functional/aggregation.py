# SPDX-License-Identifier: Apache-2.0
"""One loss from the losses of tokens, with denominators over the whole update, not over its parts.

An update may be computed in several parts, on several ranks. A mean of the parts' means would weigh a token
by how many others happen to share its part. So each token gets its weight from the *whole* update, and the
losses of the parts are summed.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]
"""How the losses of tokens become one.

    token_mean     mean over all real tokens: PPO, and DAPO (arXiv 2503.14476, Eq. 8)
    sequence_mean  mean over responses of the mean over each one's tokens: GRPO (arXiv 2402.03300, Eq. 3)
    sequence_sum   mean over responses of the sum over each one's tokens: RLOO (arXiv 2402.14740), and, but
                   for a constant, Dr. GRPO (arXiv 2503.20783); no token weighs more in a short response
"""


def denominator(response_mask: Bool[Tensor, "R T"], aggregation: Aggregation) -> Float[Tensor, ""]:
    """What the weights of this part divide by, to be summed over all parts: real tokens, or responses.

    A response without a real token does not count.
    """
    counted = response_mask if aggregation == "token_mean" else response_mask.any(dim=1)
    return counted.sum().float()


def token_weights(
    response_mask: Bool[Tensor, "R T"], aggregation: Aggregation, *, total: Float[Tensor, ""] | float
) -> Float[Tensor, "R T"]:
    """Weight of each token in the loss: 0 where masked.

    Args:
        response_mask: True at real tokens of this part.
        aggregation: how the losses become one.
        total: the ``denominator`` of the whole update. Where gradients are averaged over ranks, its mean over
            ranks: the averages then sum to the gradient of the whole.

    Example:
        >>> mask = torch.tensor([[True, True, False], [True, False, False]])
        >>> token_weights(mask, "sequence_mean", total=2.0).tolist()
        [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]]
    """
    weights = response_mask.float() / torch.as_tensor(total, device=response_mask.device).clamp(min=1e-8)
    if aggregation == "sequence_mean":
        weights = weights / response_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return weights


def aggregate(losses: Float[Tensor, "R T"], weights: Float[Tensor, "R T"]) -> Float[Tensor, ""]:
    """Weighted sum of the losses: the part of the whole loss that these tokens make.

    What is not finite in a token of weight 0 reaches neither the loss nor the gradient.

    Raises:
        ValueError: shapes differ.
    """
    if losses.shape != weights.shape:
        raise ValueError(f"losses {losses.shape} and weights {weights.shape} differ in shape")
    return (losses.masked_fill(weights == 0, 0.0) * weights).sum()
