# SPDX-License-Identifier: Apache-2.0
"""On-policy training told once: what every algorithm shares, and the two methods in which they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ixc_lightning.functional.advantages import Advantages
from ixc_lightning.functional.aggregation import Aggregation, aggregate, denominator, token_weights
from ixc_lightning.functional.kl import KL_TO_REFERENCE
from ixc_lightning.functional.moments import Moments, merge_moments
from ixc_lightning.functional.policy_loss import ppo_clip_losses, ratio_statistics
from ixc_lightning.functional.rewards import penalise_missing_end, sequence_rewards, shaped_rewards
from ixc_lightning.functional.value import explained_variance, value_losses
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.modules.experience import Experience, Reading, select, shuffled
from ixc_lightning.modules.kl_control import KLControl
from ixc_lightning.modules.optimisation import check_state, optimise
from ixc_lightning.modules.pictures import Pictures, Seeing, shared_eyes
from ixc_lightning.modules.random_state import restore_random_state, save_random_state
from ixc_lightning.modules.ranks import mean_over_ranks
from ixc_lightning.modules.reading import read_in_parts, read_tokens, score_in_parts, value_tokens
from ixc_lightning.modules.roles import check_speaks, frozen, placed, without_dropout
from ixc_lightning.modules.score_scale import DomainScale
from ixc_lightning.modules.sources import Rule, WeightedVerifier
from ixc_lightning.modules.tally import Tally, no_seconds, peak_memory_gb, timed
from ixc_lightning.rollout import (
    Engine,
    Sampling,
    TransformersEngine,
    check_same_tokenizer,
    load_processor,
    rollout_seed,
    stop_tokens,
    texts,
)
from ixc_lightning.types import Answers, InputError, PromptBatch, Rollout

STATE = "on_policy"
FROZEN = ("reference.", "reward_model.")
"""Roles that a run builds from their sources and never changes: they are not part of a checkpoint."""


class OnPolicyModule(L.LightningModule, ABC):
    """Trains a policy on its own answers to ``PromptBatch``es.

    An algorithm is a subclass with ``advantages``, and with ``policy_losses`` where it does not clip as PPO
    does. The reference is what ``policy`` builds, frozen. Each picture is encoded once for all roles whose
    frozen towers are the same.

    ``global_step`` counts iterations: one batch of prompts, answered and learnt from in ``epochs`` passes.
    Optimisers are stepped here, so clipping and accumulation are set here, not in the trainer. The precisions
    are ``32-true`` and ``bf16-mixed``.

    Logs below ``train/``: ``score`` (what an answer earned), ``reward`` (score less the KL's cost), ``kl``
    (to the reference, nats per response) and ``kl_coef``, ``entropy`` (nats per token), ``policy_loss``,
    ``ratio``, ``first_ratio`` (of the first minibatch: 1 unless something is broken), ``clip_fraction``,
    ``approximate_kl`` (of the iteration's updates; small is healthy), ``length`` and ``ended``,
    ``bad_scores`` (share that is not a number), ``domain_score/<domain>``, ``seconds/<phase>``,
    ``peak_memory_gb``, with a critic ``value_loss`` and ``explained_variance``. Below ``val/``, for greedy
    and sampled answers each: ``<way>_score``, ``<way>_length``, and ``<way>_correct``, which no reward model
    has a say in: where the score, that of the reward model alone, rises and that falls, the reward is being
    hacked.

    Args:
        policy: builds the policy with its language head, and the reference.
        optimizer: over the parameters of the policy that are trained.
        kl: what a nat of KL(policy ‖ reference) costs.
        sampling: how answers are drawn; stop tokens of the chat template are added.
        reward_model: builds the judge from the folder of a trained one; null leaves the reward to
            ``verifiers``.
        reward_model_weight: of its score, normalised by its statistics or by ``score_scale``.
        verifiers: further sources of reward, with their weights.
        correctness: scores above 0 where a validation answer is right; it earns nothing by itself.
        critic: builds the critic, for algorithms that use one.
        critic_optimizer: over the parameters of the critic that are trained.
        critic_warmup: first iterations in which the critic alone learns.
        scheduler: of the policy's learning rate, stepped once per iteration.
        engine: what answers; null is ``TransformersEngine``.
        score_scale: brings the reward model's scores of all domains to one scale.
        missing_end_penalty: taken off the score where no stop token was sampled.
        kl_estimator: of KL(policy ‖ reference), by its name in ``functional.kl``.
        ratio_clip: ε of the clipped ratio.
        dual_clip: c of the bound where the advantage is negative; null is no bound.
        epochs: passes over the answers of an iteration.
        minibatch_size: answers per rank and optimiser step.
        rows_at_once: answers per rank and forward pass; null is ``minibatch_size``.
        stop_kl: passes end early once the mean ``approximate_kl`` of one is above this; null is never.
        max_gradient_norm: gradients are clipped to this norm.
        seed: fixes the draws and the order of minibatches.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``.

    Raises:
        InputError: nothing earns reward, or a critic has no optimiser.
    """

    aggregation: ClassVar[Aggregation] = "token_mean"
    """How the losses of tokens become one."""
    kl_in_reward: ClassVar[bool] = True
    """Whether the KL is taken off the rewards; else ``policy_losses`` sees to it."""

    policy: Backbone | None
    reference: Backbone | None
    reward_model: RewardModel | None
    critic: Critic | None

    def __init__(
        self,
        policy: Callable[[], Backbone],
        *,
        optimizer: OptimizerCallable,
        kl: KLControl,
        sampling: Sampling,
        reward_model: Callable[[], RewardModel] | None = None,
        reward_model_weight: float = 1.0,
        verifiers: list[WeightedVerifier] | None = None,
        correctness: Rule | None = None,
        critic: Callable[[], Critic] | None = None,
        critic_optimizer: OptimizerCallable | None = None,
        critic_warmup: int = 0,
        scheduler: LRSchedulerCallable | None = None,
        engine: Engine | None = None,
        score_scale: DomainScale | None = None,
        missing_end_penalty: float = 0.0,
        kl_estimator: Literal["k1", "k2", "k3"] = "k1",
        ratio_clip: float = 0.2,
        dual_clip: float | None = None,
        epochs: int = 1,
        minibatch_size: int = 64,
        rows_at_once: int | None = None,
        stop_kl: float | None = None,
        max_gradient_norm: float = 1.0,
        seed: int = 0,
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        if reward_model is None and not verifiers:
            raise InputError("nothing earns reward: give reward_model or verifiers")
        if critic is not None and critic_optimizer is None:
            raise InputError("the critic has no optimiser: give critic_optimizer")
        for name, value in (("epochs", epochs), ("minibatch_size", minibatch_size)):
            if value < 1:
                raise InputError(f"{name} is {value}, but must be at least 1")
        self.automatic_optimization = False
        self.strict_loading = False
        self.build_policy, self.build_reward_model, self.build_critic = policy, reward_model, critic
        self.optimizer, self.critic_optimizer, self.scheduler = optimizer, critic_optimizer, scheduler
        self.kl = kl
        self.sampling = sampling
        self.reward_model_weight = reward_model_weight
        self.verifiers = verifiers or []
        self.correctness = correctness
        self.critic_warmup = critic_warmup
        self.engine = engine or TransformersEngine()
        self.score_scale = score_scale
        self.missing_end_penalty = missing_end_penalty
        self.kl_estimator = kl_estimator
        self.ratio_clip, self.dual_clip = ratio_clip, dual_clip
        self.epochs, self.minibatch_size = epochs, minibatch_size
        self.rows_at_once = rows_at_once or minibatch_size
        self.stop_kl = stop_kl
        self.max_gradient_norm = max_gradient_norm
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.policy = self.reference = None
        self.reward_model = None
        self.critic = None
        self.eyes: dict[str, str] | None = None
        self.seconds = no_seconds()

    # what an algorithm decides

    @abstractmethod
    def advantages(self, experience: Experience) -> Advantages:
        """What the policy, and the critic if there is one, learn from.

        Args:
            experience: all of this rank's answers in an iteration; its ``advantages`` and ``returns`` are 0.
        """

    def policy_losses(self, experience: Experience, reading: Reading) -> Float[Tensor, "R T"]:
        """Loss of each token; PPO's clipped one unless the algorithm has another.

        Args:
            experience: some of the answers.
            reading: what the policy thinks of their tokens now, with its gradient.
        """
        return ppo_clip_losses(
            reading.logprobs,
            experience.logprobs,
            experience.advantages,
            ratio_clip=self.ratio_clip,
            dual_clip=self.dual_clip,
        )

    def value_losses(self, experience: Experience, values: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """Loss of the critic at each token: squared error unless the algorithm has another."""
        return value_losses(values, experience.values, experience.returns)

    # what an iteration is

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration."""
        self.seconds = no_seconds()
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
        if (schedulers := self.lr_schedulers()) is not None:
            schedulers.step()

    def look(self, batch: PromptBatch) -> Pictures:
        """The batch's pictures, for every role."""
        roles: dict[str, Seeing] = {name: role for name, role in self.roles().items() if role is not None}
        if self.eyes is None:
            self.eyes = shared_eyes(roles)
        return Pictures(batch.prompts, roles, self.eyes)

    @timed
    @torch.no_grad()
    def roll_out(
        self, batch: PromptBatch, pictures: Pictures, sampling: Sampling, *, iteration: int
    ) -> Rollout:
        """Answers of the policy, drawn by a seed of this rank and iteration."""
        assert self.policy is not None
        stops = stop_tokens(self.processor)
        return self.engine.generate(
            self.policy,
            batch,
            pictures.all("policy"),
            replace(sampling, stop_tokens=(*sampling.stop_tokens, *stops)),
            seed=rollout_seed(self.seed, rank=self.global_rank, iteration=iteration),
        )

    @timed
    @torch.no_grad()
    def score(self, rollout: Rollout, pictures: Pictures) -> Float[Tensor, " R"]:
        """What each whole answer earns: the weighted sum of all sources, less the missing-end penalty."""
        total = torch.zeros(len(rollout.ended), device=self.device)
        if self.reward_model is not None:
            raw = score_in_parts(self.reward_model, rollout, pictures, size=self.rows_at_once)
            total = total + self.reward_model_weight * self.scaled(raw, rollout)
        said = texts(rollout, self.processor) if self.verifiers else []
        for source in self.verifiers:
            total = total + source.weight * source.verifier(said, rollout)
        return penalise_missing_end(total, rollout.ended, penalty=self.missing_end_penalty)

    def scaled(self, scores: Float[Tensor, " R"], rollout: Rollout) -> Float[Tensor, " R"]:
        """The reward model's scores on a scale that the policy can learn from."""
        if self.score_scale is None:
            assert self.reward_model is not None
            return self.reward_model.normalise(scores)
        return self.score_scale(
            scores,
            rollout.domain,
            rollout.real & scores.isfinite(),
            names=list(self.trainer.datamodule.domains),
            over_ranks=self.over_ranks,
        )

    @timed
    @torch.no_grad()
    def experience(self, rollout: Rollout, scores: Float[Tensor, " R"], pictures: Pictures) -> Experience:
        """What every role thinks of the answers, and what each token earned; no advantages yet.

        Raises:
            InputError: no answer of any rank has a score that is a number.
        """
        assert self.policy is not None
        assert self.reference is not None
        valid = rollout.real & scores.isfinite()
        if not mean_over_ranks(valid.sum(), self.trainer) > 1e-6:
            raise InputError(
                "no answer has a score that is a number: look at the reward model, whose scores should be "
                "finite, and at the verifiers"
            )
        mask = rollout.responses.mask & valid.unsqueeze(1)
        scores = scores.masked_fill(~valid, 0.0)
        size, heat = self.rows_at_once, self.sampling.temperature
        own = read_in_parts("policy", self.policy, rollout, pictures, temperature=heat, size=size)
        reference = read_in_parts("reference", self.reference, rollout, pictures, temperature=heat, size=size)
        kl = KL_TO_REFERENCE[self.kl_estimator](own, reference).masked_fill(~mask, 0.0)
        nothing = torch.zeros_like(own)
        return Experience(
            rollout=rollout,
            valid=valid,
            response_mask=mask,
            scores=scores,
            logprobs=own.masked_fill(~mask, 0.0),
            ref_logprobs=reference.masked_fill(~mask, 0.0),
            kl=kl,
            rewards=shaped_rewards(scores, kl, mask, kl_coef=self.kl.coef if self.kl_in_reward else 0.0),
            values=self.values(rollout, pictures).masked_fill(~mask, 0.0) if self.critic else nothing,
            advantages=nothing,
            returns=nothing,
        )

    def values(self, rollout: Rollout, pictures: Pictures) -> Float[Tensor, "R T"]:
        """The critic's value of the state in which each token was sampled."""
        assert self.critic is not None
        rows = torch.arange(len(rollout.ended), device=self.device).split(self.rows_at_once)
        return torch.cat([value_tokens(self.critic, select(rollout, part), pictures) for part in rows])

    @timed
    def learn(self, experience: Experience, pictures: Pictures) -> Tally:
        """Passes over the answers, an optimiser step for each minibatch.

        Returns:
            What was counted in all passes.
        """
        tally, count = Tally(), len(experience.valid)
        for epoch in range(self.epochs):
            drift = Tally()
            seed = rollout_seed(
                self.seed, rank=0, iteration=-1 - epoch - self.epochs * self.trainer.global_step
            )
            minibatches = list(shuffled(count, self.minibatch_size, seed=seed, device=self.device))
            for number, rows in enumerate(minibatches):
                self.accumulate(experience.rows(rows), pictures, tally, drift)
                is_end = number + 1 == len(minibatches)
                is_last = is_end and (epoch + 1 == self.epochs or self.is_far(drift))
                self.update(tally, is_last=is_last)
            if is_last:
                break
        return tally

    def is_far(self, drift: Tally) -> bool:
        """Whether the policy has moved too far in one pass to make another."""
        return self.stop_kl is not None and drift.means(self.reduce)["approximate_kl"] > self.stop_kl

    def accumulate(self, minibatch: Experience, pictures: Pictures, tally: Tally, drift: Tally) -> None:
        """Add the gradients of a minibatch, computed in parts whose weights are those of the whole."""
        assert self.policy is not None
        total = mean_over_ranks(denominator(minibatch.response_mask, self.aggregation), self.trainer)
        tokens = mean_over_ranks(denominator(minibatch.response_mask, "token_mean"), self.trainer)
        is_first = "ratio" not in tally.sums
        for rows in torch.arange(len(minibatch.valid), device=self.device).split(self.rows_at_once):
            part = minibatch.rows(rows)
            mask = part.response_mask
            if self.trainer.global_step >= self.critic_warmup:
                weights = token_weights(mask, self.aggregation, total=total)
                heat = self.sampling.temperature
                reading = read_tokens("policy", self.policy, part.rollout, pictures, temperature=heat)
                loss = aggregate(self.policy_losses(part, reading), weights)
                self.manual_backward(loss)
                self.count(part, reading, weights, loss, [tally, drift], is_first=is_first)
            if self.critic is not None:
                values = value_tokens(self.critic, part.rollout, pictures)
                losses = self.value_losses(part, values)
                loss = aggregate(losses, token_weights(mask, "token_mean", total=tokens))
                self.manual_backward(loss)
                tally.add_all("value_loss", losses.detach(), mask)

    def count(
        self,
        part: Experience,
        reading: Reading,
        weights: Float[Tensor, "R T"],
        loss: Float[Tensor, ""],
        tallies: list[Tally],
        *,
        is_first: bool,
    ) -> None:
        """Count how far the policy has moved, and how sure it is."""
        moved = ratio_statistics(
            reading.logprobs, part.logprobs, part.response_mask, ratio_clip=self.ratio_clip
        )
        for tally in tallies:
            tally.add("ratio", moved.ratio, moved.tokens)
            tally.add("approximate_kl", moved.kl, moved.tokens)
            tally.add("clip_fraction", moved.clipped, moved.tokens)
            tally.add_all("entropy", reading.entropy.detach(), part.response_mask)
            tally.add("policy_loss", loss, weights.sum())
            if is_first:
                tally.add("first_ratio", moved.ratio, moved.tokens)

    def update(self, tally: Tally, *, is_last: bool) -> None:
        """Clip and step, the critic first.

        Lightning counts the steps of optimisers that it has wrapped. It is to count iterations, so only the
        policy's last step goes through the wrapper. In the critic's warm-up the policy has no gradient, and
        its optimiser changes nothing.
        """
        policy, critic = self._both_optimizers(wrapped=False)
        if critic is not None:
            tally.add("critic_gradient_norm", self._clip(self.critic), 1.0)
            critic.step()
            critic.zero_grad()
        if self.trainer.global_step >= self.critic_warmup:
            tally.add("gradient_norm", self._clip(self.policy), 1.0)
        if is_last:
            self._both_optimizers(wrapped=True)[0].step()
        else:
            policy.step()
        policy.zero_grad()

    def report(self, experience: Experience, tally: Tally) -> None:
        """Steer the KL by what was found, and log the iteration."""
        rollout, valid = experience.rollout, experience.valid
        kl = experience.kl.sum(dim=1)
        tally.add_all("score", experience.scores, valid)
        tally.add_all("reward", sequence_rewards(experience.rewards, experience.response_mask), valid)
        tally.add_all("kl", kl, valid)
        tally.add_all("length", rollout.lengths, valid)
        tally.add_all("ended", rollout.ended, valid)
        tally.add_all("bad_scores", ~valid, rollout.real)
        for index, name in enumerate(self.trainer.datamodule.domains):
            tally.add_all(f"domain_score/{name}", experience.scores, valid & (rollout.domain == index))
        means = tally.means(self.reduce)
        values = {name: value for name, value in means.items() if value == value}  # a domain without prompts
        values["kl_coef"] = self.kl.coef
        if self.critic is not None:
            values["explained_variance"] = explained_variance(
                experience.values, experience.returns, experience.response_mask
            ).item()
        values |= {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        values["peak_memory_gb"] = peak_memory_gb(self.device)
        self.log_dict({f"train/{name}": value for name, value in values.items()}, rank_zero_only=True)
        samples = mean_over_ranks(valid.sum(), self.trainer) * self.trainer.world_size
        self.kl.update(means["kl"], round(samples.item()))

    # what validation is

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Answers]:
        """Answers to fixed prompts, the likeliest ones and drawn ones, for callbacks too."""
        pictures = self.look(batch)
        ways = {"greedy": replace(self.sampling, n=1, greedy=True), "sampled": replace(self.sampling, n=1)}
        return {name: self.evaluate(name, way, batch, batch_idx, pictures) for name, way in ways.items()}

    @torch.no_grad()
    def evaluate(
        self, name: str, sampling: Sampling, batch: PromptBatch, batch_idx: int, pictures: Pictures
    ) -> Answers:
        """Answers to a batch, scored on a scale that does not move, and checked."""
        rollout = self.roll_out(batch, pictures, sampling, iteration=batch_idx)
        said = texts(rollout, self.processor)
        if self.reward_model is not None:
            raw = score_in_parts(self.reward_model, rollout, pictures, size=self.rows_at_once)
            scores = self.reward_model.normalise(raw)
        else:
            scores = sum(source.weight * source.verifier(said, rollout) for source in self.verifiers)
        self._log_mean(f"val/{name}_score", scores, rollout.real & scores.isfinite())
        self._log_mean(f"val/{name}_length", rollout.lengths.float(), rollout.real)
        correct = None
        if self.correctness is not None:
            correct = self.correctness(said, rollout) > 0
            self._log_mean(f"val/{name}_correct", correct.float(), rollout.real & rollout.has_answer)
        return Answers(said, scores, correct)

    def _log_mean(self, name: str, values: Float[Tensor, " R"], counted: Bool[Tensor, " R"]) -> None:
        if counted.any():
            self.log(name, values[counted].mean(), batch_size=int(counted.sum()))

    # the networks and their state

    @property
    def model(self) -> Backbone | None:
        """What training makes, and an export writes: the policy."""
        return self.policy

    @property
    def processor(self) -> Any:
        """Of the datamodule, and so of the policy."""
        return self.trainer.datamodule.encoder.processor

    def roles(self) -> dict[str, Backbone | RewardModel | Critic | None]:
        """All networks by name."""
        return {
            "policy": self.policy,
            "reference": self.reference,
            "reward_model": self.reward_model,
            "critic": self.critic,
        }

    def configure_model(self) -> None:
        """Build every role, once, and shard each where the strategy has a mesh of ranks.

        Raises:
            InputError: the policy cannot speak, or has nothing to train.
        """
        if self.policy is not None:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        dtype = getattr(torch, self.compute_dtype)
        policy = without_dropout(self.build_policy())
        check_speaks(policy, "policy")
        self.policy = placed(policy, mesh, compute_dtype=dtype)
        self.reference = placed(frozen(self.build_policy()), mesh, compute_dtype=dtype)
        if self.build_reward_model is not None:
            self.reward_model = placed(frozen(self.build_reward_model()), mesh, compute_dtype=dtype)
        if self.build_critic is not None:
            self.critic = placed(without_dropout(self.build_critic()), mesh, compute_dtype=dtype)

    def on_fit_start(self) -> None:
        """Make sure that reward model and critic read the policy's tokens and pictures as they are.

        Raises:
            InputError: one has another tokenizer, template or picture processor.
        """
        for name, role in (("reward model", self.reward_model), ("critic", self.critic)):
            if role is not None:
                own = load_processor(role.backbone.config._name_or_path)
                check_same_tokenizer(self.processor, own, role=name)

    def train(self, mode: bool = True) -> OnPolicyModule:
        """Set training mode, except in roles that only judge."""
        super().train(mode)
        for role in (self.reference, self.reward_model):
            if role is not None:
                role.eval()
        return self

    def configure_optimizers(self) -> Any:
        """The policy's optimiser, and the critic's."""
        assert self.policy is not None
        made = [optimise(self.policy.parameters(), self.optimizer, self.scheduler)]
        if self.critic is not None:
            assert self.critic_optimizer is not None
            made.append(optimise(self.critic.parameters(), self.critic_optimizer, None))
        return tuple(made)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Policy and critic; the roles that judge are built from their sources."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith(FROZEN)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the KL coefficient, the running statistics and the random state."""
        scale = {} if self.score_scale is None else self.score_scale.state_dict()
        checkpoint[STATE] = {"kl_coef": self.kl.coef, "score_scale": scale}
        save_random_state(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, by name, and go on where it stood."""
        check_state(self, checkpoint)
        restore_random_state(self.trainer, checkpoint)
        self.kl.coef = checkpoint[STATE]["kl_coef"]
        if self.score_scale is not None:
            self.score_scale.load_state_dict(checkpoint[STATE]["score_scale"])

    def reduce(self, sums: Tensor) -> Tensor:
        """Mean over ranks, of sums and counts alike."""
        return self.trainer.strategy.reduce(sums, reduce_op="mean")

    def over_ranks(self, moments: Moments) -> Moments:
        """Moments of this rank to those of all."""
        every = self.all_gather(torch.tensor(moments, dtype=torch.float64, device=self.device))
        return merge_moments(Moments(*row) for row in every.reshape(-1, 3).tolist())

    def _both_optimizers(self, *, wrapped: bool) -> tuple[Any, Any]:
        found = self.optimizers(use_pl_optimizer=wrapped)
        return tuple(found) if isinstance(found, list) else (found, None)

    def _clip(self, role: Any) -> Tensor:
        trained = [parameter for parameter in role.parameters() if parameter.grad is not None]
        norm = clip_grad_norm_(trained, self.max_gradient_norm, error_if_nonfinite=True)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
