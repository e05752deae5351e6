# SPDX-License-Identifier: Apache-2.0
"""GRPO: answers to the same prompt are judged by their group's mean and standard deviation."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.advantages import Advantages, standardised_group_advantages
from ixc_lightning.functional.aggregation import Aggregation
from ixc_lightning.functional.kl import kl_to_reference_k3
from ixc_lightning.modules.experience import Experience, Reading
from ixc_lightning.modules.on_policy import OnPolicyModule


class GRPOModule(OnPolicyModule):
    """Group-relative policy optimisation, without a critic. Arguments as in ``OnPolicyModule``.

    DeepSeekMath, §4.1 (arXiv 2402.03300): ``sampling.n`` answers to a prompt, two or more, are a group; the
    KL, by the k3 estimate, is part of the loss and not of the reward.
    """

    aggregation: ClassVar[Aggregation] = "sequence_mean"
    kl_in_reward: ClassVar[bool] = False

    def advantages(self, experience: Experience) -> Advantages:
        """Score of each answer in standard deviations of its group, at each of its tokens."""
        return experience.spread(
            standardised_group_advantages(
                experience.scores, experience.rollout.prompt_index, experience.valid
            )
        )

    def policy_losses(self, experience: Experience, reading: Reading) -> Float[Tensor, "R T"]:
        """The clipped loss and, at each token, what its KL costs."""
        kl = kl_to_reference_k3(reading.logprobs, experience.ref_logprobs)
        return torch.add(super().policy_losses(experience, reading), kl, alpha=self.kl.coef)
