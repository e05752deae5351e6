# SPDX-License-Identifier: Apache-2.0
"""torchmetrics classes over the pure functions of ``ixc_lightning.functional``."""

from ixc_lightning.metrics.mm_rlhf_rewardbench import MMRLHFRewardBench as MMRLHFRewardBench
from ixc_lightning.metrics.multimodal_rewardbench import MultimodalRewardBench as MultimodalRewardBench
from ixc_lightning.metrics.preference import PreferenceStatistics as PreferenceStatistics
from ixc_lightning.metrics.rewardbench import RewardBench as RewardBench
from ixc_lightning.metrics.rewardbench_2 import RewardBench2 as RewardBench2
from ixc_lightning.metrics.rm_bench import RMBench as RMBench
from ixc_lightning.metrics.video_rewardbench import VideoRewardBench as VideoRewardBench
from ixc_lightning.metrics.vl_rewardbench import VLRewardBench as VLRewardBench
