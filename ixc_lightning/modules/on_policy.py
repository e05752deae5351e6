# SPDX-License-Identifier: Apache-2.0
"""On-policy training told once: what every algorithm shares, and the two methods in which they differ.

Who takes part is in ``networks``, how answers become an experience in ``collecting``, how the policy learns
from it in ``learning``, and what validation asks in ``evaluating``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ixc_lightning.functional.advantages import Advantages
from ixc_lightning.functional.rewards import sequence_rewards
from ixc_lightning.functional.value import explained_variance
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.packing import Sharing
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.modules.evaluating import Evaluating
from ixc_lightning.modules.experience import Experience
from ixc_lightning.modules.health import Health, OnNonFinite
from ixc_lightning.modules.kl_control import KLControl
from ixc_lightning.modules.learning import Learning
from ixc_lightning.modules.ranks import mean_over_ranks
from ixc_lightning.modules.score_scale import DomainScale
from ixc_lightning.modules.sources import Rule, WeightedVerifier
from ixc_lightning.modules.tally import Tally, no_seconds, peak_memory_gb
from ixc_lightning.rollout import Engine, Sampling, TransformersEngine
from ixc_lightning.types import InputError, PromptBatch


class OnPolicyModule(Evaluating, Learning, ABC):
    """Trains a policy on its own answers to ``PromptBatch``es.

    An algorithm is a subclass with ``advantages``, and with ``policy_losses`` where it does not clip as PPO
    does. The reference is what ``policy`` builds, frozen. Each picture is encoded once for all roles whose
    frozen towers are the same.

    ``global_step`` counts iterations: one batch of prompts, answered and learnt from in ``epochs`` passes.
    Optimisers are stepped here, so clipping and accumulation are set here, not in the trainer. The precisions
    are ``32-true`` and ``bf16-mixed``.

    Logs below ``train/``: ``score`` (what an answer earned), ``reward`` (score less the KL's cost), ``kl``
    (to the reference, nats per response) and ``kl_coef``, ``entropy`` (nats per token), ``policy_loss``
    (mean over minibatches), ``ratio``, ``first_ratio`` (of the first minibatch: 1 unless something is
    broken), ``clip_fraction``, ``approximate_kl`` (of the iteration's updates; small is healthy),
    ``gradient_norm`` and ``critic_gradient_norm`` (before clipping), ``length``, ``ended``, ``bad_scores``
    (share that is not a number), ``domain_score/<domain>``, ``seconds/<phase>``, ``peak_memory_gb``, with a
    critic ``value_loss`` and ``explained_variance``, with ``on_non_finite: skip`` ``skipped_steps``. Below
    ``val/``, for greedy and sampled answers each: ``<way>_score``, ``<way>_length``, and ``<way>_correct``,
    which no reward model has a say in: where the score, that of the reward model alone, rises and that falls,
    the reward is being hacked.

    Args:
        policy: builds the policy with its language head, and the reference.
        optimizer: over the parameters of the policy that are trained.
        kl: what a nat of KL(policy ‖ reference) costs.
        sampling: how answers are drawn; stop tokens of the chat template are added.
        reward_model: builds the judge from the folder of a trained one; null leaves the reward to
            ``verifiers``.
        reward_suffix: text behind every answer where the reward model reads it, such as its reward token.
        reencode: give the reward model its answers as text, encoded anew by its own processor, so that it may
            read other tokens and pictures than the policy; else such a reward model is refused.
        reward_model_weight: of its score, normalised by its statistics or by ``score_scale``.
        verifiers: further sources of reward, with their weights.
        correctness: scores above 0 where a validation answer is right; it earns nothing by itself.
        critic: builds the critic, for algorithms that use one.
        critic_optimizer: over the parameters of the critic that are trained.
        critic_warmup: first iterations in which the critic alone learns.
        critic_scheduler: of the critic's learning rate, stepped once per iteration.
        scheduler: of the policy's learning rate, stepped once per iteration.
        engine: what answers; null is ``TransformersEngine``.
        score_scale: brings the reward model's scores of all domains to one scale.
        missing_end_penalty: taken off the score where no stop token was sampled.
        kl_estimator: of KL(policy ‖ reference), by its name in ``functional.kl``.
        ratio_clip: ε of the clipped ratio.
        ratio_to: what the policy is compared with in the clipped loss: ``old``, the policy that answered, or
            ``reference``, as Eq. 3 of InternLM-XComposer2.5-Reward prints it.
        dual_clip: c of the bound where the advantage is negative; null is no bound.
        entropy_coef: what a nat of entropy, at each token, is worth in the loss.
        epochs: passes over the answers of an iteration.
        minibatch_size: answers per rank and optimiser step.
        rows_at_once: answers per rank and forward pass; null is ``minibatch_size``.
        sharing: ``auto`` has policy, reference and critic read a prompt once for all its answers in a forward
            pass, where the network can do that, and logs why it cannot otherwise; what they think is the
            same. ``off`` has them read it with each answer.
        stop_kl: passes end early once the mean ``approximate_kl`` of one is above this; null is never.
        max_gradient_norm: gradients are clipped to this norm.
        on_non_finite: ``raise`` stops where a loss or gradient is not finite, ``skip`` leaves that step of
            both optimisers out; either way ``non_finite.jsonl`` in the log folder lists the samples.
        seed: fixes the draws and the order of minibatches.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``.

    Raises:
        InputError: nothing earns reward, a critic has no optimiser, or nothing is to be encoded anew.
    """

    def __init__(
        self,
        policy: Callable[[], Backbone],
        *,
        optimizer: OptimizerCallable,
        kl: KLControl,
        sampling: Sampling,
        reward_model: Callable[[], RewardModel] | None = None,
        reward_model_weight: float = 1.0,
        reward_suffix: str = "",
        reencode: bool = False,
        verifiers: list[WeightedVerifier] | None = None,
        correctness: Rule | None = None,
        critic: Callable[[], Critic] | None = None,
        critic_optimizer: OptimizerCallable | None = None,
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
        super().__init__()
        if reward_model is None and not verifiers:
            raise InputError("nothing earns reward: give reward_model or verifiers")
        if reencode and reward_model is None:
            raise InputError("reencode is on, but there is no reward model to encode for: give reward_model")
        if critic is not None and critic_optimizer is None:
            raise InputError("the critic has no optimiser: give critic_optimizer")
        for name, value in (("epochs", epochs), ("minibatch_size", minibatch_size)):
            if value < 1:
                raise InputError(f"{name} is {value}, but must be at least 1")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.strict_loading = False
        self.build_policy, self.build_reward_model, self.build_critic = policy, reward_model, critic
        self.optimizer, self.scheduler = optimizer, scheduler
        self.critic_optimizer, self.critic_scheduler = critic_optimizer, critic_scheduler
        self.kl = kl
        self.sampling = sampling
        self.reward_model_weight, self.reward_suffix = reward_model_weight, reward_suffix
        self.reencode, self.reencoding = reencode, None
        self.verifiers = verifiers or []
        self.correctness = correctness
        self.critic_warmup = critic_warmup
        self.engine = engine or TransformersEngine()
        self.score_scale = score_scale
        self.missing_end_penalty = missing_end_penalty
        self.kl_estimator = kl_estimator
        self.ratio_clip, self.ratio_to, self.dual_clip = ratio_clip, ratio_to, dual_clip
        self.entropy_coef = entropy_coef
        self.epochs, self.minibatch_size = epochs, minibatch_size
        self.rows_at_once = rows_at_once or minibatch_size
        self.sharing = sharing
        self.stop_kl = stop_kl
        self.max_gradient_norm = max_gradient_norm
        self.health = Health(on_non_finite)
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.policy = self.reference = None
        self.reward_model = None
        self.critic = None
        self.eyes, self.seconds = None, no_seconds()
        self.start, self.is_learning = None, False

    @abstractmethod
    def advantages(self, experience: Experience) -> Advantages:
        """What the policy, and the critic if there is one, learn from.

        Args:
            experience: all of this rank's answers in an iteration; its ``advantages`` and ``returns`` are 0.
        """

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Tensor]:
        """One iteration.

        Returns:
            ``tokens``: how many of this rank were read, prompts once and all answers.
        """
        self.start, self.seconds = self.steering(), no_seconds()
        pictures = self.look(batch)
        # 1 roll out: answer each prompt, several times
        rollout = self.roll_out(batch, pictures, self.sampling, iteration=self.trainer.global_step)
        # 2 score what was said
        scores = self.score(rollout, pictures)
        # 3 read it: what policy, reference and critic think of each token; shape the rewards
        experience = self.experience(rollout, scores, pictures)
        # 4 advantages: what was better than expected
        experience = experience.judged(self.advantages(experience))
        # 5 learn, in minibatches and epochs
        tally = self.learn(experience, pictures)
        # 6 steer the KL, and log
        self.report(experience, tally)
        self.step_schedules()
        self.start, self.is_learning = None, False
        return {"tokens": batch.prompts.mask[batch.real].sum() + rollout.lengths[rollout.real].sum()}

    def report(self, experience: Experience, tally: Tally) -> None:
        """Steer the KL by what was found, and log the iteration."""
        rollout, valid = experience.rollout, experience.valid
        tally.add_all("score", experience.scores, valid)
        tally.add_all("reward", sequence_rewards(experience.rewards, experience.response_mask), valid)
        tally.add_all("kl", experience.kl.sum(dim=1), valid)
        tally.add_all("length", rollout.lengths, valid)
        tally.add_all("ended", rollout.ended, valid)
        tally.add_all("bad_scores", ~valid, rollout.real)
        for index, name in enumerate(self.trainer.datamodule.domains):
            tally.add_all(f"domain_score/{name}", experience.scores, valid & (rollout.domain == index))
        values = tally.known_means(self.reduce)  # a domain may be without prompts
        kl = values["kl"]
        values["kl_coef"] = self.kl.coef
        if self.reencoding is not None:
            values |= self.reencoding.counted(self.reduce)
        if self.health.skips:
            values["skipped_steps"] = self.health.skipped
        if self.critic is not None:
            values["explained_variance"] = explained_variance(
                experience.values, experience.returns, experience.response_mask
            ).item()
        values |= {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        values["peak_memory_gb"] = peak_memory_gb(self.device)
        self.log_dict({f"train/{name}": value for name, value in values.items()}, rank_zero_only=True)
        samples = mean_over_ranks(valid.sum(), self.trainer) * self.trainer.world_size
        self.kl.update(kl, round(samples.item()))
