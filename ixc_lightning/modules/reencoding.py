# SPDX-License-Identifier: Apache-2.0
"""A reward model that reads other tokens than the policy: it is given the answers as text.

The policy's tokens would mean something else to it, and so would its pictures. So the loader encodes every
prompt for it as well, with its own chat template, tiling and frames, and here each answer becomes text and
then the tokens that the reward model's template makes of it. Its score is that of the text, whatever tokens
said it; an answer that the limit of tokens cut short ends like any other to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.visuals import picture_token_ids
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.modules.reading import score_in_parts
from ixc_lightning.modules.tally import Tally
from ixc_lightning.types import InputError, Responses, RewardPrompts, Rollout

ROLE = "reward_model"
UNKNOWN = "\ufffd"
"""What decoders write where tokens are no characters, such as half of one."""


@runtime_checkable
class AnswerEncoder(Protocol):
    """What encodes answers for the reward model: the ``ChatEncoder`` over its processor."""

    tokenizer: Any

    def answers(self, messages: Any, texts: Sequence[str], *, where: str) -> list[Tensor]:
        """Token ids of answers to a prompt."""
        ...


class Reencoding:
    """Scores of answers as texts, by a reward model with tokens of its own.

    Counts, over the answers that are real: ``reencoded_length`` (mean tokens of an answer in the reward
    model's tokenizer), ``reencoded_unlike`` (share whose text the reward model's tokens do not say, white
    space apart: letters that it does not know, parts that its template leaves out, broken characters) and
    ``reencoded_bad`` (share that says a token for pictures, where none is; such an answer has no score).

    Args:
        encoder: encodes answers for the reward model.
    """

    def __init__(self, encoder: AnswerEncoder) -> None:
        self.encoder = encoder
        self.tally = Tally()

    def __call__(
        self, judge: RewardModel, rollout: Rollout, said: Sequence[str], *, size: int
    ) -> Float[Tensor, " R"]:
        """The reward model's scores as it gives them; NaN for an answer that it cannot read.

        Args:
            judge: the reward model.
            rollout: the answers, with their ``reward_prompts``.
            said: each answer as text.
            size: answers of one forward pass.

        Raises:
            InputError: an answer is too long for the reward model, or the batch has no prompts for it.
        """
        asked = rollout.reward_prompts
        if asked is None:
            raise InputError(
                "reencode is on, but the prompts came without those for the reward model: take "
                "PromptDataModule, or put reward_prompts into the batches of your own datamodule"
            )
        encoded = self.encoded(rollout, asked, said)
        responses = _padded(encoded, device=rollout.ended.device)
        _check_room(judge, asked, responses, rollout)
        pictures = list(picture_token_ids(judge.backbone.config).values())
        is_picture = torch.isin(responses.ids, responses.ids.new_tensor(pictures)) & responses.mask
        self.count(rollout, encoded, said, is_picture.any(dim=1))
        readable = Responses(responses.ids.masked_fill(is_picture, 0), responses.mask)
        scores = score_in_parts(
            judge,
            rollout._replace(responses=readable),
            Pictures(asked.prompts, {ROLE: judge}, {ROLE: ROLE}),
            size=size,
        )
        return scores.masked_fill(is_picture.any(dim=1), torch.nan)

    def encoded(self, rollout: Rollout, asked: RewardPrompts, said: Sequence[str]) -> list[Tensor]:
        """The reward model's tokens of each answer, in the order of the rows."""
        tokens: list[Tensor] = [torch.empty(0)] * len(said)
        for prompt, messages in enumerate(asked.messages):
            rows = (rollout.prompt_index == prompt).nonzero().flatten().tolist()
            own = self.encoder.answers(messages, [said[row] for row in rows], where=rollout.keys[rows[0]])
            for row, ids in zip(rows, own, strict=True):
                tokens[row] = ids
        return tokens

    def count(self, rollout: Rollout, encoded: Sequence[Tensor], said: Sequence[str], is_bad: Tensor) -> None:
        """Note what became of the texts."""
        unlike = [
            not _is_said(text, ids, self.encoder.tokenizer) for text, ids in zip(said, encoded, strict=True)
        ]
        device = rollout.ended.device
        lengths = torch.tensor([len(ids) for ids in encoded], device=device)
        self.tally.add_all("reencoded_length", lengths, rollout.real)
        self.tally.add_all("reencoded_unlike", torch.tensor(unlike, device=device), rollout.real)
        self.tally.add_all("reencoded_bad", is_bad, rollout.real)

    def counted(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of what was counted since the last time, over all ranks."""
        means = self.tally.known_means(over_ranks)
        self.tally = Tally()
        return means


def _is_said(text: str, ids: Tensor, tokenizer: Any) -> bool:
    """Whether the tokens say the text, white space apart, and all of it is characters."""
    read = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return UNKNOWN not in text and "".join(text.split()) in "".join(read.split())


def _padded(rows: Sequence[Tensor], *, device: torch.device) -> Responses:
    """Rows padded with 0 on the right."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return Responses(pad_sequence(list(rows), batch_first=True).to(device), mask.to(device))


def _check_room(judge: RewardModel, asked: RewardPrompts, responses: Responses, rollout: Rollout) -> None:
    room = getattr(judge.backbone.config.get_text_config(), "max_position_embeddings", None)
    prompts = asked.prompts.mask.sum(dim=1)[rollout.prompt_index]
    answers = responses.mask.sum(dim=1)
    longest = int((prompts + answers).argmax())
    if room is not None and prompts[longest] + answers[longest] > room:
        raise InputError(
            f"{rollout.keys[longest]}: {int(prompts[longest])} prompt tokens and {int(answers[longest])} of "
            f"an answer, in the reward model's tokenizer, are more than its {room} positions: lower "
            "sampling.max_tokens, or leave long prompts out with data.max_tokens"
        )
