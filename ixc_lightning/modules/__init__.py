# SPDX-License-Identifier: Apache-2.0
"""LightningModules: orchestration only, the mathematics is in ``ixc_lightning.functional``."""

from ixc_lightning.modules.reward import RewardModule as RewardModule
from ixc_lightning.modules.schedule import WarmupCosineLR as WarmupCosineLR
from ixc_lightning.modules.schedule import WarmupLinearLR as WarmupLinearLR
from ixc_lightning.modules.sft import SFTModule as SFTModule
