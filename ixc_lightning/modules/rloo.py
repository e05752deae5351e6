# SPDX-License-Identifier: Apache-2.0
"""RLOO: what other answers to the same prompt earned is the baseline."""

from __future__ import annotations

from typing import ClassVar

from ixc_lightning.functional.advantages import Advantages, leave_one_out_advantages
from ixc_lightning.functional.aggregation import Aggregation
from ixc_lightning.functional.rewards import sequence_rewards
from ixc_lightning.modules.experience import Experience
from ixc_lightning.modules.on_policy import OnPolicyModule


class RLOOModule(OnPolicyModule):
    """REINFORCE with a leave-one-out baseline, without a critic. Arguments as in ``OnPolicyModule``.

    Ahmadian et al. 2024 (arXiv 2402.14740): a whole answer is one action, its KL is part of its reward, and
    ``sampling.n`` answers to a prompt, two or more, are each other's baseline.
    """

    aggregation: ClassVar[Aggregation] = "sequence_sum"

    def advantages(self, experience: Experience) -> Advantages:
        """Reward of each answer less the mean reward of the others, at each of its tokens."""
        rewards = sequence_rewards(experience.rewards, experience.response_mask)
        return experience.spread(
            leave_one_out_advantages(rewards, experience.rollout.prompt_index, experience.valid)
        )
