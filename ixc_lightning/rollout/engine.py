# SPDX-License-Identifier: Apache-2.0
"""From prompts to a ``Rollout``: the interface of generation engines, and the engine of transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from ixc_lightning.functional.masking import pad_left
from ixc_lightning.functional.rollout import stack_prompts, stack_rows, take_rows, until_stop
from ixc_lightning.functional.sampling import uniforms
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.growth import grows
from ixc_lightning.models.packing import Sharing
from ixc_lightning.models.visuals import Visuals, picture_token_ids
from ixc_lightning.rollout.decoding import Rules, grown, repeated
from ixc_lightning.rollout.gathering import gathered
from ixc_lightning.types import InputError, PromptBatch, Responses, Rollout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    The defaults draw from the policy's own distribution, softmax(z / temperature) of its logits z. ``top_p``,
    ``top_k`` and ``min_tokens`` leave tokens out, so that the tokens are no longer drawn from the
    distribution whose probabilities training computes: keep the defaults for training, and use them to look
    at a policy.

    Args:
        n: samples for each prompt.
        temperature: divides the logits.
        top_p: draw from the likeliest tokens that together have this probability; 1 is all.
        top_k: draw from that many likeliest tokens; 0 is all.
        min_tokens: fewest tokens before a stop token may be drawn.
        max_tokens: most tokens of a response, its stop token included.
        greedy: take the likeliest token instead of drawing; the other rules do not matter then.
        stop_tokens: ids of stop tokens beside those of the policy's generation config; ``stop_tokens`` of
            this package finds those of a chat template.

    Raises:
        InputError: a value out of its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    max_tokens: int = 256
    greedy: bool = False
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = (
            ("n", self.n >= 1, "at least 1"),
            (
                "temperature",
                0 < self.temperature < float("inf"),
                "positive; for the likeliest token say greedy",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0, for all tokens, or more"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "from 0 to max_tokens"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise InputError(f"sampling.{name} is {getattr(self, name)}, but must be {rule}")
        if self.greedy and self.n > 1:
            raise InputError(
                f"sampling.n is {self.n}, but greedy samples of one prompt are all equal: set n to 1"
            )


@runtime_checkable
class Engine(Protocol):
    """What answers prompts.

    An engine keeps the tokens that it samples and never turns them into text and back. It says neither
    log-probabilities nor logits: training computes them anew, so that every engine is treated alike.
    """

    def generate(
        self,
        policy: Backbone,
        batch: PromptBatch,
        visuals: Visuals | None,
        sampling: Sampling,
        *,
        seed: int,
    ) -> Rollout:
        """Sample ``sampling.n`` responses to each prompt of the batch.

        Args:
            policy: the network whose weights answer.
            batch: B prompts, padded on either side.
            visuals: their pictures as the policy's ``encode`` gave them, not stacked; None for text.
            sampling: how to draw.
            seed: fixes the draws; other ranks and iterations take other ones (``rollout_seed``).

        Returns:
            The rollout, on the device of the prompts.
        """
        ...


class TransformersEngine:
    """Answers with a network of transformers: a cache of keys and values, pictures encoded once.

    A prompt is read once for all its samples, and responses that have ended make room for the others, where
    the network can do that (``models.growth``); else transformers' ``generate`` answers as many copies. The
    responses are the same. A row's draws are its own: whatever is beside it, they do not change.

    The policy answers in evaluation mode and without gradients, and the caller's random state stays as it
    was. Under FSDP2 the policy's layers are gathered on every rank while it answers, which needs room for one
    whole copy, and ``generate`` and ``logits`` must be among the methods that it was sharded with.

    Args:
        max_rows: most responses written at a time; fewer take less memory and more time. Null is all.
        sharing: ``auto`` reads a prompt once for its samples, where the network can do that, and logs why it
            cannot otherwise. ``off`` always asks ``generate``.

    Raises:
        InputError: ``max_rows`` is not positive.
    """

    def __init__(self, max_rows: int | None = None, sharing: Sharing = "auto") -> None:
        if max_rows is not None and max_rows < 1:
            raise InputError(f"TransformersEngine.max_rows is {max_rows}, but must be at least 1, or null")
        self.max_rows, self.sharing = max_rows, sharing

    def generate(
        self,
        policy: Backbone,
        batch: PromptBatch,
        visuals: Visuals | None,
        sampling: Sampling,
        *,
        seed: int,
    ) -> Rollout:
        """Sample as ``Engine.generate`` says.

        Tokens that stand for pictures are never drawn: no picture would belong to them.

        Raises:
            InputError: the policy has no language head, no stop token is known, or a prompt leaves no room
                for ``sampling.max_tokens``.
        """
        if not policy.has_head:
            raise InputError("this policy has no language head: build it with head=True")
        rules = _rules(policy, sampling, _stop_tokens(policy, sampling))
        _check_room(policy, batch, sampling)
        count, device = len(batch.keys), batch.prompts.ids.device
        numbers = uniforms(sampling.n * count, sampling.max_tokens, seed=seed).to(device)
        # the samples of a prompt behind each other, so that parts of them share it
        order = torch.arange(sampling.n * count, device=device).view(sampling.n, count).t().flatten()
        parts = []
        with torch.no_grad(), _evaluating(policy), gathered(policy):
            decode = grown if self._shares(policy) else repeated
            for rows in order.split(self.max_rows or len(order)):
                asked, index = (rows % count).unique(return_inverse=True)
                prompts = pad_left(take_rows(batch.prompts, asked))
                pictures = None if visuals is None else visuals.select(asked)
                parts.append(decode(policy, prompts, pictures, index, rules, numbers[rows]))
        tokens = stack_rows(parts)[order.argsort()]
        mask, ended = until_stop(tokens, stop_tokens=rules.stops)
        return stack_rollout(batch, Responses(tokens.masked_fill(~mask, 0), mask), ended)

    def _shares(self, policy: Backbone) -> bool:
        """Whether responses grow behind prompts that are read once; found out once for a policy."""
        if self.sharing == "off":
            return False
        if policy.grows is None:
            reason = grows(policy)
            policy.grows = reason is None
            if reason:
                logger.warning("a prompt is read for each of its samples: %s", reason)
        return policy.grows


def stack_rollout(batch: PromptBatch, responses: Responses, ended: torch.Tensor) -> Rollout:
    """The rollout of a batch whose responses, n for each prompt, are stacked as ``Rollout`` says."""
    times = len(ended) // len(batch.keys)
    rows = torch.arange(len(batch.keys), device=ended.device)
    return Rollout(
        prompts=stack_prompts(batch.prompts, times=times),
        responses=responses,
        ended=ended,
        prompt_index=rows.repeat(times),
        answers=batch.answers * times,
        domain=batch.domain.repeat(times),
        modality=batch.modality.repeat(times),
        keys=batch.keys * times,
        real=batch.real.repeat(times),
        reward_prompts=batch.reward_prompts,
    )


def _rules(policy: Backbone, sampling: Sampling, stops: tuple[int, ...]) -> Rules:
    """The rules of the draw for this policy, whose picture tokens are left out."""
    return Rules(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stops=stops,
        never=tuple(sorted(set(picture_token_ids(policy.config).values()) - set(stops))),
        temperature=None if sampling.greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )


def _stop_tokens(policy: Backbone, sampling: Sampling) -> tuple[int, ...]:
    own = policy.model.generation_config.eos_token_id
    if own is None:
        own = policy.config.get_text_config().eos_token_id
    found = {*sampling.stop_tokens, *(own if isinstance(own, list) else [] if own is None else [own])}
    if not found:
        raise InputError(
            "no stop token is known, so no response would end: the policy's generation_config.json names "
            "no eos_token_id; add it there, or give sampling.stop_tokens"
        )
    return tuple(sorted(found))


def _check_room(policy: Backbone, batch: PromptBatch, sampling: Sampling) -> None:
    room = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    lengths = batch.prompts.mask.sum(dim=1)
    longest = int(lengths.argmax())
    tokens = int(lengths[longest])
    if room is not None and tokens + sampling.max_tokens > room:
        raise InputError(
            f"{batch.keys[longest]}: {tokens} prompt tokens and {sampling.max_tokens} of a response are more "
            f"than the {room} positions of the model: lower sampling.max_tokens, or leave long prompts out "
            "with data.max_tokens"
        )


@contextmanager
def _evaluating(policy: Backbone) -> Iterator[None]:
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)
