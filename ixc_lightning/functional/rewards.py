# SPDX-License-Identifier: Apache-2.0
"""From the score of a whole response to a reward for each of its tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ixc_lightning.functional.masking import last_index


def penalise_missing_end(
    scores: Float[Tensor, " R"], ended: Bool[Tensor, " R"], *, penalty: float
) -> Float[Tensor, " R"]:
    """Scores, less the penalty where no stop token was sampled: s − p · [not ended].

    Huang et al. 2024, detail 23 (arXiv 2403.17031), replace the score by −1; a difference keeps what the
    response was worth otherwise.

    Args:
        scores: one for each response.
        ended: whether a stop token was sampled.
        penalty: p, at least 0, in score units.

    Raises:
        ValueError: the penalty is negative: it would reward endless responses.
    """
    if penalty < 0:
        raise ValueError(f"a penalty of {penalty} would be a reward for responses that do not end")
    return torch.where(ended, scores, scores - penalty)


def shaped_rewards(
    scores: Float[Tensor, " R"],
    kl: Float[Tensor, "R T"],
    response_mask: Bool[Tensor, "R T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "R T"]:
    """Rewards of the tokens: each pays for its KL, the last real one earns the score.

    rₜ = −β klₜ + s · [t is the last real token]

    Ziegler et al. 2019, Eq. 2 (arXiv 1909.08593), spread over the tokens as InstructGPT does
    (arXiv 2203.02155, Eq. 2). The last real token is the stop token where one was sampled.

    Args:
        scores: s, one for each response.
        kl: klₜ, an estimate of KL(policy ‖ reference) at each token, in nats.
        response_mask: True at real tokens.
        kl_coef: β, in score units per nat.

    Returns:
        The rewards, 0 where masked, and 0 throughout for a row without a real token.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> kl, mask = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[True, True, False]])
        >>> shaped_rewards(torch.tensor([3.0]), kl, mask, kl_coef=0.5).tolist()  # −½, −1 + 3
        [[-0.5, 2.0, 0.0]]
    """
    if kl.shape != response_mask.shape or scores.shape != kl.shape[:1]:
        raise ValueError(f"scores {scores.shape}, kl {kl.shape}, mask {response_mask.shape} do not match")
    places = torch.arange(kl.shape[1], device=kl.device)
    is_last = (places == last_index(response_mask).unsqueeze(1)) & response_mask
    rewards = -kl_coef * kl + torch.where(is_last, scores.unsqueeze(1), 0.0)
    return rewards.masked_fill(~response_mask, 0.0)


def sequence_rewards(
    rewards: Float[Tensor, "R T"], response_mask: Bool[Tensor, "R T"]
) -> Float[Tensor, " R"]:
    """Reward of each whole response: the sum over its real tokens, s − β Σₜ klₜ."""
    return rewards.masked_fill(~response_mask, 0.0).sum(dim=1)
