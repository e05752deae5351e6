# SPDX-License-Identifier: Apache-2.0
"""Tokens of the rows of a batch: how one is taken from the logits, and two ways to come to all of them.

``grown`` reads a prompt once for all its rows and lets rows go that have ended. ``repeated`` asks for as many
copies of the prompt the ``generate`` of transformers, which does neither. The rules and the random numbers
are the same, row by row, so both give the same tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.functional.sampling import draw
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.growth import Growth
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.types import Prompts

LEAVING = 0.125
"""Share of the rows in a step that have ended, from which on they leave: that copies what the others keep."""


class Rules(NamedTuple):
    """What decides the next token, in transformers' words.

    Attributes:
        max_tokens: most tokens of a row.
        min_tokens: fewest tokens before a stop token.
        stops: tokens that end a row.
        never: tokens that are not taken.
        temperature: divides the logits; None takes the likeliest token, whatever else is asked for.
        top_k: 0 for all.
        top_p: 1 for all.
    """

    max_tokens: int
    min_tokens: int
    stops: tuple[int, ...]
    never: tuple[int, ...]
    temperature: float | None
    top_k: int
    top_p: float

    def processors(self, device: torch.device, *, behind: int) -> LogitsProcessorList:
        """Transformers' own ones, in its own order, for rows that begin with so many tokens of a prompt."""
        found = LogitsProcessorList()
        if self.min_tokens:
            stops = list(self.stops)
            found.append(MinNewTokensLengthLogitsProcessor(behind, self.min_tokens, stops, device=device))
        if self.never:
            found.append(SuppressTokensLogitsProcessor(list(self.never), device=device))
        if self.temperature is None:
            return found
        if self.temperature != 1:
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        return found


class Draw(LogitsProcessor):
    """Leaves the token alone that the numbers draw, so that ``generate`` must take it.

    Args:
        uniforms: a number for each token of each row.
        behind: tokens of the prompts.
    """

    def __init__(self, uniforms: Float[Tensor, "R T"], *, behind: int) -> None:
        self.uniforms, self.behind = uniforms, behind

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the token that is drawn, −∞ at all others."""
        drawn = draw(scores, self.uniforms[:, input_ids.shape[1] - self.behind])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.unsqueeze(1), 0.0)


def repeated(
    policy: Backbone,
    prompts: Prompts,
    visuals: Visuals | None,
    prompt_index: Int[Tensor, " R"],
    rules: Rules,
    uniforms: Float[Tensor, "R T"],
) -> Int[Tensor, "R _"]:
    """The tokens by transformers' ``generate``; arguments and result as those of ``grown``."""
    prompts = take_rows(prompts, prompt_index)
    behind = prompts.ids.shape[1]
    processors = rules.processors(prompts.ids.device, behind=behind)
    if rules.temperature is not None:
        processors.append(Draw(uniforms, behind=behind))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=rules.max_tokens,
        eos_token_id=list(rules.stops),
        pad_token_id=0,
        use_cache=True,
    )
    own = None if visuals is None else visuals.select(prompt_index)
    return policy.generate(prompts, own, settings, processors)


def grown(
    policy: Backbone,
    prompts: Prompts,
    visuals: Visuals | None,
    prompt_index: Int[Tensor, " R"],
    rules: Rules,
    uniforms: Float[Tensor, "R T"],
) -> Int[Tensor, "R _"]:
    """The tokens of rows that grow behind prompts, each of which is read once (``models.growth``).

    Args:
        policy: the network, one that ``grows``.
        prompts: padded on the left; every one has a row.
        visuals: their pictures, which know their rows (``Visuals.located``), or None.
        prompt_index: the prompt of each row.
        rules: how tokens are taken.
        uniforms: the numbers that decide the draws.

    Returns:
        The tokens. Behind a row's stop token they mean nothing.
    """
    device = prompts.ids.device
    processors = rules.processors(device, behind=0)
    stops = torch.tensor(rules.stops, device=device)
    tokens = torch.zeros(len(prompt_index), rules.max_tokens, dtype=torch.long, device=device)
    rows = torch.arange(len(prompt_index), device=device)
    open_rows = torch.ones_like(rows, dtype=torch.bool)

    def take(logits: Float[Tensor, "rows V"]) -> Int[Tensor, " rows"]:
        scores = processors(tokens[rows, :place], logits.float())
        return scores.argmax(dim=-1) if rules.temperature is None else draw(scores, uniforms[rows, place])

    growth = Growth(policy, prompts, visuals, prompt_index)
    states = growth.last
    for place in range(rules.max_tokens):
        heads = slice(None) if place else prompt_index  # the first token's logits are made once a prompt
        taken = take(policy.logits(states.unsqueeze(1))[heads, -1])
        tokens[rows, place] = taken
        open_rows &= ~torch.isin(taken, stops)
        left = int(open_rows.sum())
        if not left or place + 1 == rules.max_tokens:
            break
        if len(rows) - left >= LEAVING * len(rows):
            growth.keep(open_rows.nonzero().squeeze(1))
            rows, taken = rows[open_rows], taken[open_rows]
            open_rows = open_rows[open_rows]
        states = growth.step(taken)
    return tokens[:, : place + 1]
