# SPDX-License-Identifier: Apache-2.0
"""LightningModules: orchestration only, the mathematics is in ``ixc_lightning.functional``."""

from ixc_lightning.modules.benchmark import BenchmarkModule as BenchmarkModule
from ixc_lightning.modules.best_of_n import BestOfNModule as BestOfNModule
from ixc_lightning.modules.grpo import GRPOModule as GRPOModule
from ixc_lightning.modules.kl_control import AdaptiveKL as AdaptiveKL
from ixc_lightning.modules.kl_control import FixedKL as FixedKL
from ixc_lightning.modules.make_pairs import MakePairsModule as MakePairsModule
from ixc_lightning.modules.on_policy import OnPolicyModule as OnPolicyModule
from ixc_lightning.modules.ppo import PPOModule as PPOModule
from ixc_lightning.modules.reward import RewardModule as RewardModule
from ixc_lightning.modules.rloo import RLOOModule as RLOOModule
from ixc_lightning.modules.schedule import WarmupCosineLR as WarmupCosineLR
from ixc_lightning.modules.schedule import WarmupLinearLR as WarmupLinearLR
from ixc_lightning.modules.score_scale import DomainScale as DomainScale
from ixc_lightning.modules.scoring import ScoringModule as ScoringModule
from ixc_lightning.modules.sft import SFTModule as SFTModule
from ixc_lightning.modules.sources import WeightedVerifier as WeightedVerifier
