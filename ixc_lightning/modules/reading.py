# SPDX-License-Identifier: Apache-2.0
"""What the networks say about the tokens of a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding

from ixc_lightning.functional.logprobs import in_rows, token_logprobs
from ixc_lightning.functional.masking import join
from ixc_lightning.functional.packing import Trees, pack, predicting_places
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.functional.sft import predicting_mask
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.packing import read_trees
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.visuals import Visuals
from ixc_lightning.modules.experience import Reading, by_prompt, in_place, select
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.types import Responses, Rollout


def read_tokens(
    name: str, policy: Backbone, rollout: Rollout, pictures: Pictures, *, temperature: float
) -> Reading:
    """What a policy thinks of each token of some answers, at the temperature that they were drawn with.

    A prompt is read once for all its answers among them if the policy ``shares``.

    Args:
        name: of the role that the policy plays.
        policy: the policy, or the reference.
        rollout: the answers, or some of them.
        pictures: of all prompts.
        temperature: divides the logits.
    """
    responses = rollout.responses
    if policy.shares:
        trees, visuals = grown(name, rollout, responses, pictures)
        packing = pack(trees)
        hidden = read_trees(policy, trees, packing, visuals)[1]
        states = embedding(predicting_places(packing), hidden)
    else:
        sequences = join(rollout.prompts, responses)
        visuals = pictures.of(name, rollout.prompt_index)
        hidden = policy(sequences.ids, sequences.mask, sequences.token_types, visuals)
        states = hidden[predicting_mask(sequences.response_mask)]
    mask = responses.mask
    tokens = policy.read_logits(partial(token_logprobs, temperature=temperature), states, responses.ids[mask])
    return Reading(in_rows(tokens.logprobs, mask), in_rows(tokens.entropy, mask))


def read_in_parts(
    name: str, policy: Backbone, rollout: Rollout, pictures: Pictures, *, temperature: float, size: int
) -> Float[Tensor, "R T"]:
    """The log-probabilities alone, of all answers, ``size`` at a time."""
    parts = [
        read_tokens(name, policy, select(rollout, rows), pictures, temperature=temperature).logprobs
        for rows in by_prompt(rollout, size)
    ]
    return in_place(parts, rollout)


def value_tokens(critic: Critic, rollout: Rollout, pictures: Pictures) -> Float[Tensor, "R T"]:
    """The critic's value of the state in which each token was sampled; 0 where masked.

    A prompt is read once for all its answers among these if the critic's backbone ``shares``.
    """
    if critic.backbone.shares:
        values = critic(*grown("critic", rollout, rollout.responses, pictures))
    else:
        sequences = join(rollout.prompts, rollout.responses)
        values = critic(sequences, pictures.of("critic", rollout.prompt_index))
        values = values[predicting_mask(sequences.response_mask)]
    return in_rows(values, rollout.responses.mask)


def values_in_parts(
    critic: Critic, rollout: Rollout, pictures: Pictures, *, size: int
) -> Float[Tensor, "R T"]:
    """The critic's values, of all answers, ``size`` at a time."""
    parts = [value_tokens(critic, select(rollout, rows), pictures) for rows in by_prompt(rollout, size)]
    return in_place(parts, rollout)


def score_in_parts(
    judge: RewardModel, rollout: Rollout, pictures: Pictures, *, size: int, suffix: Sequence[int] = ()
) -> Float[Tensor, " R"]:
    """The reward model's scores as it gives them, of all answers, ``size`` at a time; a prompt is read once.

    Args:
        judge: the reward model.
        rollout: the answers.
        pictures: of all prompts.
        size: answers of one forward pass.
        suffix: tokens behind every answer, such as a reward token.
    """
    parts = []
    for rows in by_prompt(rollout, size):
        part = select(rollout, rows)
        parts.append(judge(*grown("reward_model", part, followed(part.responses, suffix), pictures)))
    return in_place(parts, rollout)


def grown(
    name: str, rollout: Rollout, responses: Responses, pictures: Pictures
) -> tuple[Trees, Visuals | None]:
    """Trees of the prompts of some answers, every prompt once, and their pictures as a role sees them.

    Args:
        name: of the role.
        rollout: the answers.
        responses: those of the rollout, or what is to be read in their place.
        pictures: of all prompts.
    """
    prompts, index = rollout.prompt_index.unique(return_inverse=True)
    return Trees(take_rows(pictures.prompts, prompts), responses, index), pictures.of(name, prompts)


def followed(responses: Responses, suffix: Sequence[int]) -> Responses:
    """The responses with the same tokens behind each one.

    They stand behind the padding, and ``join`` closes that gap. The responses' own tokens stay what they are:
    a text that was encoded anew could have others.
    """
    if not suffix:
        return responses
    more = torch.tensor(suffix, device=responses.ids.device).expand(len(responses.ids), -1)
    return Responses(
        torch.cat([responses.ids, more], dim=1),
        torch.cat([responses.mask, torch.ones_like(more, dtype=torch.bool)], dim=1),
    )
