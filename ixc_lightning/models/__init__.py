# SPDX-License-Identifier: Apache-2.0
"""The networks: the backbone face over a vision-language model, and the reward model on top of it."""

from ixc_lightning.models.adapters import LoRA as LoRA
from ixc_lightning.models.backbone import ROLES, Backbone, Visuals

__all__ = ["ROLES", "Backbone", "LoRA", "Visuals"]
from ixc_lightning.models.reward_model import RewardModel as RewardModel
