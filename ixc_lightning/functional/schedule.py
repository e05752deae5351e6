# SPDX-License-Identifier: Apache-2.0
"""Multipliers of the learning rate as functions of the optimiser step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, total: int, warmup: int, final_ratio: float) -> float:
    """Multiplier with a linear warm-up and a decay along half a cosine.

    It rises as (step + 1)/(warmup + 1) to 1 at ``warmup``, falls to ``final_ratio`` at ``total``, and stays
    there.

    Raises:
        ValueError: the warm-up is not shorter than the run.

    Example:
        >>> [round(warmup_cosine(s, total=6, warmup=2, final_ratio=0.0), 3) for s in (0, 1, 2, 4, 6)]
        [0.333, 0.667, 1.0, 0.5, 0.0]
    """
    done = _progress(step, total, warmup)
    if done < 0:
        return (step + 1) / (warmup + 1)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_linear(step: int, *, total: int, warmup: int, final_ratio: float) -> float:
    """Multiplier with a linear warm-up and a linear decay.

    It rises as (step + 1)/(warmup + 1) to 1 at ``warmup``, falls to ``final_ratio`` at ``total``, and stays
    there.

    Raises:
        ValueError: the warm-up is not shorter than the run.

    Example:
        >>> [round(warmup_linear(s, total=6, warmup=2, final_ratio=0.5), 3) for s in (0, 2, 4, 6, 9)]
        [0.333, 1.0, 0.75, 0.5, 0.5]
    """
    done = _progress(step, total, warmup)
    if done < 0:
        return (step + 1) / (warmup + 1)
    return 1 - (1 - final_ratio) * done


def _progress(step: int, total: int, warmup: int) -> float:
    """Share of the steps after the warm-up that are done, at most 1; negative during the warm-up."""
    if not 0 <= warmup < total:
        raise ValueError(
            f"warm-up of {warmup} steps does not fit in a run of {total}; set trainer.max_steps above it"
        )
    return min((step - warmup) / (total - warmup), 1.0)
