# SPDX-License-Identifier: Apache-2.0
"""From prompts to an ``Experience``: answers, what they earn, and what every role thinks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.kl import KL_TO_REFERENCE
from ixc_lightning.functional.rewards import penalise_missing_end, shaped_rewards
from ixc_lightning.modules.experience import Experience, filled
from ixc_lightning.modules.networks import Networks
from ixc_lightning.modules.pictures import Pictures, Seeing, shared_eyes
from ixc_lightning.modules.ranks import mean_over_ranks
from ixc_lightning.modules.reading import read_in_parts, score_in_parts, values_in_parts
from ixc_lightning.modules.sources import WeightedVerifier
from ixc_lightning.modules.tally import timed
from ixc_lightning.rollout import Engine, Sampling, rollout_seed, stop_tokens, texts
from ixc_lightning.types import InputError, PromptBatch, Rollout


class Collecting(Networks):
    """Steps 1 to 3 of an iteration. ``OnPolicyModule`` says what the attributes are, and sets them."""

    kl_in_reward: ClassVar[bool] = True
    """Whether the KL is taken off the rewards; else ``policy_losses`` sees to it."""

    sampling: Sampling
    engine: Engine
    verifiers: Sequence[WeightedVerifier]
    reward_model_weight: float
    missing_end_penalty: float
    kl_estimator: Literal["k1", "k2", "k3"]
    rows_at_once: int
    seed: int
    eyes: dict[str, str] | None

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
        """Answers of the policy, drawn by a seed of this rank and iteration.

        Ranks whose batch is shorter, as at the end of an epoch, get rows that count nowhere: sharded networks
        must be called equally often by all ranks.
        """
        assert self.policy is not None
        stops = stop_tokens(self.processor)
        rollout = self.engine.generate(
            self.policy,
            batch,
            pictures.all("policy"),
            replace(sampling, stop_tokens=(*sampling.stop_tokens, *stops)),
            seed=rollout_seed(self.seed, rank=self.global_rank, iteration=iteration),
        )
        rows = torch.tensor(len(rollout.ended), device=self.device)
        return filled(rollout, int(self.trainer.strategy.reduce(rows, reduce_op="max")))

    @timed
    @torch.no_grad()
    def score(self, rollout: Rollout, pictures: Pictures) -> Float[Tensor, " R"]:
        """What each whole answer earns: the weighted sum of all sources, less the missing-end penalty."""
        total = torch.zeros(len(rollout.ended), device=self.device)
        if self.reward_model is not None:
            total = total + self.reward_model_weight * self.scaled(self.opinion(rollout, pictures), rollout)
        said = texts(rollout, self.processor) if self.verifiers else []
        for source in self.verifiers:
            total = total + source.weight * source.verifier(said, rollout)
        return penalise_missing_end(total, rollout.ended, penalty=self.missing_end_penalty)

    def opinion(self, rollout: Rollout, pictures: Pictures) -> Float[Tensor, " R"]:
        """The reward model's scores, as it gives them."""
        assert self.reward_model is not None
        if self.reencoding is not None:
            said = texts(rollout, self.processor)
            return self.reencoding(self.reward_model, rollout, said, size=self.rows_at_once)
        return score_in_parts(
            self.reward_model, rollout, pictures, size=self.rows_at_once, suffix=self.suffix
        )

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
        values = nothing = torch.zeros_like(own)
        if self.critic is not None:
            values = values_in_parts(self.critic, rollout, pictures, size=size).masked_fill(~mask, 0.0)
        return Experience(
            rollout=rollout,
            valid=valid,
            response_mask=mask,
            scores=scores,
            logprobs=own.masked_fill(~mask, 0.0),
            ref_logprobs=reference.masked_fill(~mask, 0.0),
            kl=kl,
            rewards=shaped_rewards(scores, kl, mask, kl_coef=self.kl.coef if self.kl_in_reward else 0.0),
            values=values,
            advantages=nothing,
            returns=nothing,
        )
