# SPDX-License-Identifier: Apache-2.0
"""What the best of n samples can be expected to be, from the N ≥ n that were drawn."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def expected_best_of_n(
    scores: Shaped[Tensor, "B N"], values: Shaped[Tensor, "B N"] | None = None
) -> Float[Tensor, "B N"]:
    """The expected value of the best-scored of n samples, for every n from 1 to N, in float64.

    Column n − 1 is the mean over all subsets of n of the N samples, which is the unbiased estimator of least
    variance (a U-statistic) of E[v(argmaxᵢ sᵢ)] over n fresh samples:

        Σⱼ wₙⱼ vⱼ,   wₙⱼ = [C(uⱼ, n) − C(lⱼ, n)] / [C(N, n) (uⱼ − lⱼ)]

    with uⱼ samples that score at most sⱼ, and lⱼ that score less. Without ties the numerator is C(lⱼ, n − 1),
    as in the estimator of pass@k (Chen et al. 2021, arXiv 2107.03374, Eq. 1), which this is for scores of 0
    and 1; of equal scores each is as likely to be taken. n = 1 is the mean, n = N the value of the best.

    Args:
        scores: by which the best is chosen: N samples of each of B prompts.
        values: what is asked about the chosen sample, its length or whether it is right, say; null asks for
            its score.

    Raises:
        ValueError: a score is no number, the shapes differ, or there is no sample.

    Example:
        >>> expected_best_of_n(torch.tensor([[1.0, 4.0, 2.5]])).round(decimals=6).tolist()
        [[2.5, 3.5, 4.0]]
    """
    values = scores if values is None else values
    if scores.shape != values.shape or scores.dim() != 2 or not scores.shape[1]:
        raise ValueError(
            f"scores {tuple(scores.shape)} and values {tuple(values.shape)} must be of one shape (B, N)"
        )
    if scores.isnan().any():
        raise ValueError("a score is not a number, so nobody can say which sample is the best")
    count = scores.shape[1]
    ordered = scores.sort(dim=1).values
    below = torch.searchsorted(ordered, scores.contiguous())
    up_to = torch.searchsorted(ordered, scores.contiguous(), right=True)
    share = _subset_share(count, scores.device)
    ties = (up_to - below).double()
    columns = [(n[up_to] - n[below]) / ties for n in share]
    return torch.stack([(weights * values.double()).sum(dim=1) for weights in columns], dim=1)


def _subset_share(count: int, device: torch.device) -> Float[Tensor, "N M"]:
    """C(k, n) / C(N, n) in row n − 1 and column k: the share of the subsets of n that lie in k of the N."""
    n = torch.arange(1, count + 1, device=device, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(count + 1, device=device, dtype=torch.float64)
    log_share = _log_choose(k.clamp(min=n), n) - _log_choose(torch.full_like(n, count), n)
    return log_share.exp().masked_fill(k < n, 0.0)


def _log_choose(k: Tensor, n: Tensor) -> Tensor:
    return (k + 1).lgamma() - (n + 1).lgamma() - (k - n + 1).lgamma()
