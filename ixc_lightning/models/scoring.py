# SPDX-License-Identifier: Apache-2.0
"""Scores of any number of responses to each prompt, every picture encoded once, every prompt read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ixc_lightning.functional.packing import Trees
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.types import InputError, Prompts, Responses


def score_responses(
    judge: RewardModel,
    prompts: Prompts,
    responses: Responses,
    prompt_index: Int[Tensor, " R"],
    *,
    size: int,
    passes: int | None = None,
) -> Float[Tensor, " R"]:
    """The reward model's scores as it gives them.

    Args:
        judge: the reward model.
        prompts: B prompts with their media, which are encoded once.
        responses: R responses.
        prompt_index: row of the prompt of each response.
        size: responses of one forward pass.
        passes: how many forward passes to make at least, because other ranks of a sharded model make as many.
    """
    visuals = judge.encode(prompts)
    scores = []
    for rows in torch.arange(len(prompt_index), device=prompt_index.device).split(size):
        places, index = prompt_index[rows].unique(return_inverse=True)
        trees = Trees(take_rows(prompts, places), Responses(responses.ids[rows], responses.mask[rows]), index)
        own = None if visuals is None else visuals.select(places)
        scores.append(judge(trees, own))
    for _ in range(len(scores), passes or 0):
        judge(trees, own)
    return torch.cat(scores)


def check_suffix(judge: RewardModel, suffix: Sequence[int], *, setting: str = "response_suffix") -> None:
    """Make sure that the token whose state a reward model scores stands behind every response.

    Args:
        judge: the reward model.
        suffix: tokens that are put behind every response.
        setting: that names their text, for the message.

    Raises:
        InputError: it does not.
    """
    token = judge.reward_token_id
    if token is None or (suffix and suffix[-1] == token) or (judge.pooling == "token" and token in suffix):
        return
    raise InputError(
        f"the reward model scores the state of token {token}, which no response ends with: give "
        f"{setting}, the text that data.response_suffix put behind the responses that it was trained on"
    )
