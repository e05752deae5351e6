# SPDX-License-Identifier: Apache-2.0
"""What the networks say about the tokens of a rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.logprobs import in_rows, token_logprobs
from ixc_lightning.functional.masking import join
from ixc_lightning.functional.packing import Trees
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.functional.sft import predicting_mask
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.modules.experience import Reading, in_order, select
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.types import Responses, Rollout


def read_tokens(
    name: str, policy: Backbone, rollout: Rollout, pictures: Pictures, *, temperature: float
) -> Reading:
    """What a policy thinks of each token of some answers, at the temperature that they were drawn with.

    Args:
        name: of the role that the policy plays.
        policy: the policy, or the reference.
        rollout: the answers, or some of them.
        pictures: of all prompts.
        temperature: divides the logits.
    """
    sequences = join(rollout.prompts, rollout.responses)
    visuals = pictures.of(name, rollout.prompt_index)
    hidden = policy(sequences.ids, sequences.mask, sequences.token_types, visuals)
    tokens = token_logprobs(
        hidden[predicting_mask(sequences.response_mask)],
        sequences.ids[sequences.response_mask],
        policy.logits,
        temperature=temperature,
    )
    mask = rollout.responses.mask
    return Reading(in_rows(tokens.logprobs, mask), in_rows(tokens.entropy, mask))


def read_in_parts(
    name: str, policy: Backbone, rollout: Rollout, pictures: Pictures, *, temperature: float, size: int
) -> Float[Tensor, "R T"]:
    """The log-probabilities alone, of all answers, ``size`` at a time."""
    return torch.cat(
        [
            read_tokens(name, policy, select(rollout, rows), pictures, temperature=temperature).logprobs
            for rows in in_order(len(rollout.ended), size, device=rollout.ended.device)
        ]
    )


def value_tokens(critic: Critic, rollout: Rollout, pictures: Pictures) -> Float[Tensor, "R T"]:
    """The critic's value of the state in which each token was sampled; 0 where masked."""
    sequences = join(rollout.prompts, rollout.responses)
    values = critic(sequences, pictures.of("critic", rollout.prompt_index))
    return in_rows(values[predicting_mask(sequences.response_mask)], rollout.responses.mask)


def values_in_parts(
    critic: Critic, rollout: Rollout, pictures: Pictures, *, size: int
) -> Float[Tensor, "R T"]:
    """The critic's values, of all answers, ``size`` at a time."""
    return torch.cat(
        [
            value_tokens(critic, select(rollout, rows), pictures)
            for rows in in_order(len(rollout.ended), size, device=rollout.ended.device)
        ]
    )


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
    responses, scores = followed(rollout.responses, suffix), []
    by_prompt = rollout.prompt_index.argsort(stable=True)  # so that the answers to a prompt share it
    for rows in by_prompt.split(size):
        prompts, index = rollout.prompt_index[rows].unique(return_inverse=True)
        part = Responses(responses.ids[rows], responses.mask[rows])
        trees = Trees(take_rows(pictures.prompts, prompts), part, index)
        scores.append(judge(trees, pictures.of("reward_model", prompts)))
    return torch.cat(scores)[by_prompt.argsort()]


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
