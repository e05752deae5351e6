# SPDX-License-Identifier: Apache-2.0
"""Where rewards come from beside the reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ixc_lightning.types import Rollout

Rule: TypeAlias = Callable[[Sequence[str], Rollout], Any]
"""A ``Verifier``. What it returns is left open, for jsonargparse would want a class that builds that."""


@dataclass
class WeightedVerifier:
    """A rule that earns the policy reward.

    Args:
        verifier: scores responses.
        weight: of its score in the sum of all sources; the reward model has ``reward_model_weight``.
    """

    verifier: Rule
    weight: float = 1.0
