# SPDX-License-Identifier: Apache-2.0
"""What one iteration learns from, and its division into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ixc_lightning.functional.advantages import Advantages
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.types import Responses, Rollout


class Reading(NamedTuple):
    """What a language model thinks of the response tokens of a rollout; 0 where masked.

    Attributes:
        logprobs: log π(yₜ) of each token at the temperature of the sampling, in nats.
        entropy: of the distribution at each token, in nats.
    """

    logprobs: Float[Tensor, "R T"]
    entropy: Float[Tensor, "R T"]


class Experience(NamedTuple):
    """Responses, what they earned, and what every role thought of them when they were written.

    All numbers are without gradient and 0 where ``response_mask`` is False.

    Attributes:
        rollout: the responses and their prompts.
        valid: responses that count: of real rows, with a score that is a number.
        response_mask: True at real tokens of valid responses.
        scores: of whole responses: the weighted sources, after scaling and penalties.
        logprobs: log π of the policy that wrote them.
        ref_logprobs: log π_ref of the reference.
        kl: estimates of KL(policy ‖ reference), in nats.
        rewards: of each token: the score at the last, less what its KL costs.
        values: V(sₜ) of the critic; 0 without one.
        advantages: what the policy learns from.
        returns: what the critic learns from.
    """

    rollout: Rollout
    valid: Bool[Tensor, " R"]
    response_mask: Bool[Tensor, "R T"]
    scores: Float[Tensor, " R"]
    logprobs: Float[Tensor, "R T"]
    ref_logprobs: Float[Tensor, "R T"]
    kl: Float[Tensor, "R T"]
    rewards: Float[Tensor, "R T"]
    values: Float[Tensor, "R T"]
    advantages: Float[Tensor, "R T"]
    returns: Float[Tensor, "R T"]

    def judged(self, verdict: Advantages) -> Experience:
        """The experience with the given advantages and returns."""
        return self._replace(advantages=verdict.advantages, returns=verdict.returns)

    def spread(self, advantages: Float[Tensor, " R"]) -> Advantages:
        """An advantage of whole responses at each of their tokens; there are no returns."""
        spread = advantages.unsqueeze(1) * self.response_mask
        return Advantages(spread, torch.zeros_like(spread))

    def rows(self, rows: Int[Tensor, " rows"]) -> Experience:
        """Some rows of it, in the given order."""
        tensors = {name: value[rows] for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return self._replace(rollout=select(self.rollout, rows), **tensors)


def select(rollout: Rollout, rows: Int[Tensor, " rows"]) -> Rollout:
    """Some rows of a rollout, in the given order; what is kept once for each prompt stays."""
    responses = rollout.responses
    places = rows.tolist()
    return Rollout(
        prompts=take_rows(rollout.prompts, rows),
        responses=Responses(responses.ids[rows], responses.mask[rows]),
        ended=rollout.ended[rows],
        prompt_index=rollout.prompt_index[rows],
        answers=[rollout.answers[place] for place in places],
        domain=rollout.domain[rows],
        modality=rollout.modality[rows],
        keys=[rollout.keys[place] for place in places],
        real=rollout.real[rows],
        reward_prompts=rollout.reward_prompts,
    )


def filled(rollout: Rollout, count: int) -> Rollout:
    """The rollout with ``count`` rows: behind its own come copies of its first row, marked as not real."""
    own = len(rollout.ended)
    if own == count:
        return rollout
    places = torch.arange(count, device=rollout.ended.device)
    more = select(rollout, places.masked_fill(places >= own, 0))
    return more._replace(real=more.real & (places < own))


def shuffled(count: int, size: int, *, seed: int, device: torch.device) -> Iterator[Int[Tensor, " rows"]]:
    """All of ``count`` rows in a random order that the seed fixes, ``size`` at a time."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    yield from order.to(device).split(size)


def by_prompt(rollout: Rollout, size: int) -> Iterator[Int[Tensor, " rows"]]:
    """All rows of a rollout, ``size`` at a time, those of a prompt behind each other to share it."""
    yield from rollout.prompt_index.argsort(stable=True).split(size)


def in_place(parts: Sequence[Shaped[Tensor, "_ ..."]], rollout: Rollout) -> Shaped[Tensor, "R ..."]:
    """What was found for the parts of ``by_prompt``, in the order of the rollout's rows."""
    return torch.cat(list(parts))[rollout.prompt_index.argsort(stable=True).argsort()]
