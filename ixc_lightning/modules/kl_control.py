# SPDX-License-Identifier: Apache-2.0
"""How much a nat of KL(policy ‖ reference) costs, in score units: always the same, or steered to a target."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ixc_lightning.functional.kl import adapted_kl_coef
from ixc_lightning.types import InputError


class KLControl(ABC):
    """The coefficient β of the KL penalty.

    Attributes:
        coef: β of the coming iteration; part of the checkpoint.
    """

    coef: float

    @abstractmethod
    def update(self, kl: float, samples: int) -> None:
        """Learn how far the policy was in this iteration.

        Args:
            kl: KL(policy ‖ reference) of whole responses, the mean of all ranks, in nats.
            samples: responses of all ranks.
        """


class FixedKL(KLControl):
    """The same β throughout.

    Args:
        coef: β, at least 0, in score units per nat.

    Raises:
        InputError: β is negative: it would reward leaving the reference.
    """

    def __init__(self, coef: float) -> None:
        if coef < 0:
            raise InputError(f"kl.coef is {coef}, but must be at least 0: a KL costs")
        self.coef = coef

    def update(self, kl: float, samples: int) -> None:
        """Nothing is learnt."""


class AdaptiveKL(KLControl):
    """β rises while the policy is further from the reference than the target, and falls while it is nearer.

    Ziegler et al. 2019, §2.2 (arXiv 1909.08593), ``functional.kl.adapted_kl_coef``.

    Args:
        coef: β of the first iteration; theirs is 0.15.
        target: KL(policy ‖ reference) to keep, in nats per response; theirs is 6.
        horizon: responses after which a KL far off the target has moved β by a fifth; theirs is 10000.

    Raises:
        InputError: a value is not positive.
    """

    def __init__(self, coef: float, target: float, horizon: int = 10000) -> None:
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon)):
            if value <= 0:
                raise InputError(f"kl.{name} is {value}, but must be positive")
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Move β towards the target."""
        self.coef = adapted_kl_coef(self.coef, kl, target=self.target, horizon=self.horizon, samples=samples)
