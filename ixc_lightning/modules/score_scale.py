# SPDX-License-Identifier: Apache-2.0
"""Scores of different task domains on one scale.

A reward model scores one domain higher than another whatever the answers are: InternLM-XComposer2.5-Reward,
§4.1 (arXiv 2501.12368). Unscaled, the policy would be told that the answers to one kind of question are good
and those to another bad, where only the questions differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ixc_lightning.functional.moments import (
    NO_MOMENTS,
    Moments,
    masked_moments,
    merge_moments,
    standardise_groups,
)
from ixc_lightning.types import InputError


class DomainScale:
    """Brings the scores of each task domain to mean 0 and standard deviation 1.

    The statistics run: they are those of all scores of the domain so far, on all ranks, the present ones
    included, and part of the checkpoint. Or they are given, and stay.

    Args:
        statistics: mean and standard deviation of the scores by name of domain, to be used as they are; null
            lets the statistics run. With some given, every domain must be.

    Raises:
        InputError: a standard deviation is not positive.
    """

    def __init__(self, statistics: dict[str, tuple[float, float]] | None = None) -> None:
        for domain, (_, std) in (statistics or {}).items():
            if std <= 0:
                raise InputError(f"score_scale.statistics: {domain} has standard deviation {std}; give more")
        self.is_running = statistics is None
        self.moments = {
            domain: Moments(1.0, mean, std**2) for domain, (mean, std) in (statistics or {}).items()
        }

    def __call__(
        self,
        scores: Float[Tensor, " R"],
        domain: Int[Tensor, " R"],
        valid: Bool[Tensor, " R"],
        *,
        names: Sequence[str],
        over_ranks: Callable[[Moments], Moments],
    ) -> Float[Tensor, " R"]:
        """The scores on one scale.

        Args:
            scores: of the reward model, as it gives them.
            domain: index into ``names``.
            valid: False for scores that count in no statistics.
            names: all domains, the same on every rank.
            over_ranks: moments of this rank to those of all.

        Raises:
            InputError: statistics were given, but not of this domain.
        """
        if self.is_running:
            for index, name in enumerate(names):
                fresh = over_ranks(masked_moments(scores, valid & (domain == index)))
                self.moments[name] = merge_moments([self.moments.get(name, NO_MOMENTS), fresh])
        if missing := [name for name in names if name not in self.moments]:
            raise InputError(
                f"score_scale.statistics has no entry for the domain {missing[0]!r}: give its mean and "
                "standard deviation, or null for running statistics"
            )
        return standardise_groups(
            scores, domain, {index: self.moments[name] for index, name in enumerate(names)}
        )

    def state_dict(self) -> dict[str, list[float]]:
        """The running statistics, as plain numbers by name of domain."""
        return {name: list(moments) for name, moments in self.moments.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from those statistics."""
        if self.is_running:
            self.moments = {name: Moments(*moments) for name, moments in state.items()}
