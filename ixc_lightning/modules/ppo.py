# SPDX-License-Identifier: Apache-2.0
"""PPO: a critic that sees says what was to be expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ixc_lightning.functional.advantages import Advantages, gae
from ixc_lightning.functional.moments import masked_moments, whiten
from ixc_lightning.functional.value import value_losses
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.packing import Sharing
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.modules.experience import Experience
from ixc_lightning.modules.health import OnNonFinite
from ixc_lightning.modules.kl_control import KLControl
from ixc_lightning.modules.on_policy import OnPolicyModule
from ixc_lightning.modules.score_scale import DomainScale
from ixc_lightning.modules.sources import Rule, WeightedVerifier
from ixc_lightning.rollout import Engine, Sampling


class PPOModule(OnPolicyModule):
    """Proximal policy optimisation with a critic.

    InternLM-XComposer2.5-Reward, §4.1 and Eq. 2 to 4 (arXiv 2501.12368); Schulman et al. 2017
    (arXiv 1707.06347). The critic is initialised from the reward model, and sees the pictures.

    Args:
        gamma: γ of the advantages.
        gae_lambda: λ of the advantages.
        value_clip: values are kept this close to those of the rollout; null is no clip.

    The other arguments are those of ``OnPolicyModule``.
    """

    def __init__(
        self,
        policy: Callable[[], Backbone],
        *,
        critic: Callable[[], Critic],
        optimizer: OptimizerCallable,
        critic_optimizer: OptimizerCallable,
        kl: KLControl,
        sampling: Sampling,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        value_clip: float | None = None,
        reward_model: Callable[[], RewardModel] | None = None,
        reward_model_weight: float = 1.0,
        reward_suffix: str = "",
        reencode: bool = False,
        verifiers: list[WeightedVerifier] | None = None,
        correctness: Rule | None = None,
        critic_scheduler: LRSchedulerCallable | None = None,
        critic_warmup: int = 0,
        scheduler: LRSchedulerCallable | None = None,
        engine: Engine | None = None,
        score_scale: DomainScale | None = None,
        missing_end_penalty: float = 0.0,
        kl_estimator: Literal["k1", "k2", "k3"] = "k1",
        ratio_clip: float = 0.2,
        ratio_to: Literal["old", "reference"] = "old",
        dual_clip: float | None = None,
        entropy_coef: float = 0.0,
        epochs: int = 1,
        minibatch_size: int = 64,
        rows_at_once: int | None = None,
        sharing: Sharing = "auto",
        stop_kl: float | None = None,
        max_gradient_norm: float = 1.0,
        on_non_finite: OnNonFinite = "raise",
        seed: int = 0,
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__(
            policy,
            optimizer=optimizer,
            kl=kl,
            sampling=sampling,
            reward_model=reward_model,
            reward_model_weight=reward_model_weight,
            reward_suffix=reward_suffix,
            reencode=reencode,
            verifiers=verifiers,
            correctness=correctness,
            critic=critic,
            critic_optimizer=critic_optimizer,
            critic_scheduler=critic_scheduler,
            critic_warmup=critic_warmup,
            scheduler=scheduler,
            engine=engine,
            score_scale=score_scale,
            missing_end_penalty=missing_end_penalty,
            kl_estimator=kl_estimator,
            ratio_clip=ratio_clip,
            ratio_to=ratio_to,
            dual_clip=dual_clip,
            entropy_coef=entropy_coef,
            epochs=epochs,
            minibatch_size=minibatch_size,
            rows_at_once=rows_at_once,
            sharing=sharing,
            stop_kl=stop_kl,
            max_gradient_norm=max_gradient_norm,
            on_non_finite=on_non_finite,
            seed=seed,
            compute_dtype=compute_dtype,
        )
        self.gamma, self.gae_lambda, self.value_clip = gamma, gae_lambda, value_clip

    def advantages(self, experience: Experience) -> Advantages:
        """Generalised advantages with mean 0 and standard deviation 1 over all ranks, and plain returns."""
        mask = experience.response_mask
        estimated = gae(
            experience.rewards, experience.values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        moments = self.over_ranks(masked_moments(estimated.advantages, mask))
        return estimated._replace(advantages=whiten(estimated.advantages, mask, moments))

    def value_losses(self, experience: Experience, values: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """Squared error, clipped where that is asked for."""
        return value_losses(values, experience.values, experience.returns, value_clip=self.value_clip)
