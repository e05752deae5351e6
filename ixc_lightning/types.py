# SPDX-License-Identifier: Apache-2.0
"""The data contracts between the layers: what a record is, what a batch is, and the one shape legend.

Shape legend, used in every annotation of the package:

    B  batch (one row per prompt)          V  vocabulary
    P  prompt tokens                       D  hidden size
    T  response tokens                     N  image or video tokens
    L  tokens of prompt and response together
    R  rows of a rollout: every sample of every prompt

Every ``*_mask`` is Bool and True marks a real token. Masked places hold 0, never a sentinel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

MODALITIES = ("text", "image", "multi_image", "video")
"""The four modalities, in the order of their ids in ``modality`` tensors."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message names the file, the key and the field, and says what to do next. The command line prints it
    alone, without a traceback, and exits with status 2.
    """


@dataclass(frozen=True)
class Record:
    """One validated sample of a shard: a conversation, its media, and what is known about its answers.

    A preference record has ``chosen`` and ``rejected``. An instruction record has neither and its
    ``messages`` end with the assistant's turn. A prompt record has neither and its ``messages`` end with the
    user's turn.

    Attributes:
        key: the WebDataset key, unique within ``shard``.
        shard: path of the tar that holds the record, for messages.
        source: name of the data set that the record came from.
        domain: name of the task domain, for example ``reading``.
        messages: the conversation in the chat-template convention of transformers; ``content`` is always a
            list of parts, each ``{"type": "text", "text": …}`` or ``{"type": "image" | "video", "file": …}``.
        chosen: the preferred continuation, one or more messages of text.
        rejected: the other continuation.
        margin: how much better ``chosen`` is, in score units; 0 where the record does not say.
        answer: the reference answer for verifiers, or None.
        media: original bytes of every file that ``messages`` names, by file name.
    """

    key: str
    shard: str
    source: str
    domain: str
    messages: tuple[Mapping[str, Any], ...]
    chosen: tuple[Mapping[str, Any], ...] | None = None
    rejected: tuple[Mapping[str, Any], ...] | None = None
    margin: float = 0.0
    answer: Any = None
    media: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        """Every content part of ``messages``, in order."""
        return [part for message in self.messages for part in message["content"]]

    @property
    def modality(self) -> str:
        """The record's entry of ``MODALITIES``: a video outranks images, two images make ``multi_image``."""
        kinds = [part["type"] for part in self.parts]
        if "video" in kinds:
            return "video"
        return MODALITIES[min(kinds.count("image"), 2)]


class Example(NamedTuple):
    """A preference pair for a person to look at.

    Attributes:
        prompt: the text of all turns before the responses.
        chosen: text of the preferred response.
        rejected: text of the other one.
        pictures: the images, and the sampled frames of clips, in order.
    """

    prompt: str
    chosen: str
    rejected: str
    pictures: list[Image]


class Prompts(NamedTuple):
    """Tokenised prompts with their media, padded on either side.

    Attributes:
        ids: token ids, 0 where masked.
        mask: True at real tokens.
        token_types: other per-token inputs of the model family (``mm_token_type_ids``, ``token_type_ids``),
            each (B, P).
        media: pixel tensors and their grids, as the processor names them, all pictures of the batch in row
            order along the first axis; empty for a batch of text.
        shows: where rows show the same pictures, the number of each row's own, counted from 0 in row order;
            ``media`` then holds them once. None where every row has pictures of its own, or none.
    """

    ids: Int[Tensor, "B P"]
    mask: Bool[Tensor, "B P"]
    token_types: dict[str, Int[Tensor, "B P"]]
    media: dict[str, Tensor]
    shows: Int[Tensor, " B"] | None = None


class Responses(NamedTuple):
    """Tokenised responses, padded on either side; they never hold media.

    Attributes:
        ids: token ids, 0 where masked.
        mask: True at real tokens, the end-of-turn token included.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]


class PreferenceBatch(NamedTuple):
    """Preference pairs: each prompt, and its pixels, once, and both responses after it.

    Attributes:
        prompts: the prompts with their media.
        chosen: the preferred responses.
        rejected: the other responses.
        margin: how much better the chosen response is, 0 where unknown.
        domain: index into the datamodule's ``domains``.
        modality: index into ``MODALITIES``.
        keys: ``shard:key`` of every record, for messages and tables.
        real: False in the row of a batch that has none of its own: a copy of a record, to be counted nowhere.
        position: place in the global order right behind this step, in samples over all ranks and epochs.
        bad: key, shard and reason of the samples that were to be in the batch and cannot be used.
    """

    prompts: Prompts
    chosen: Responses
    rejected: Responses
    margin: Float[Tensor, " B"]
    domain: Int[Tensor, " B"]
    modality: Int[Tensor, " B"]
    keys: list[str]
    real: Bool[Tensor, " B"]
    position: int
    bad: list[tuple[str, str, str]]


class InstructionBatch(NamedTuple):
    """Prompts with one reference response each, for supervised fine-tuning.

    Fields as in ``PreferenceBatch``.
    """

    prompts: Prompts
    responses: Responses
    domain: Int[Tensor, " B"]
    modality: Int[Tensor, " B"]
    keys: list[str]
    real: Bool[Tensor, " B"]
    position: int
    bad: list[tuple[str, str, str]]


class Sequences(NamedTuple):
    """Prompt and response joined, without a gap, padded on the right.

    Attributes:
        ids: token ids, 0 where masked.
        mask: True at real tokens of prompt or response.
        response_mask: True at real tokens of the response.
        token_types: as in ``Prompts``, 0 on responses.
    """

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    response_mask: Bool[Tensor, "B L"]
    token_types: dict[str, Int[Tensor, "B L"]]


class RewardPrompts(NamedTuple):
    """The prompts of a batch as a reward model reads them whose tokens are not those of the policy.

    Attributes:
        prompts: encoded by the reward model's own processor, with its own pixels.
        messages: the conversation of each prompt, as its record has it, so that an answer can follow it.
    """

    prompts: Prompts
    messages: list[tuple[Mapping[str, Any], ...]]


class PromptBatch(NamedTuple):
    """Prompts to be answered by a policy.

    Attributes:
        prompts: the prompts with their media.
        reference: the records' answers as tokens of bare text, to be looked at; an empty row where a record
            has none.
        answers: the records' answers as they are, for verifiers; None where a record has none.
        domain: index into the datamodule's ``domains``.
        modality: index into ``MODALITIES``.
        keys: ``shard:key`` of every record, for messages and tables.
        real: False in the row of a batch that has none of its own: a copy of a record, to be counted nowhere.
        position: place in the global order right behind this step, in samples over all ranks and epochs.
        bad: key, shard and reason of the samples that were to be in the batch and cannot be used.
        reward_prompts: the same prompts for a reward model that reads other tokens; None where it does not.
    """

    prompts: Prompts
    reference: Responses
    answers: list[Any]
    domain: Int[Tensor, " B"]
    modality: Int[Tensor, " B"]
    keys: list[str]
    real: Bool[Tensor, " B"]
    position: int
    bad: list[tuple[str, str, str]]
    reward_prompts: RewardPrompts | None = None


class Rollout(NamedTuple):
    """What a policy answered: n samples to each of B prompts, in R = n · B rows.

    The batch is stacked n times, as ``Visuals.repeat`` stacks its pictures: row j · B + b is sample j of
    prompt b. Answers, domains, modalities, keys and ``real`` are those of the row's prompt.

    Attributes:
        prompts: the prompts; ``media`` is that of the B prompts, once, because pictures are encoded once.
        responses: the tokens exactly as sampled, the stop token included, padded on the right.
        ended: whether a stop token was sampled; where not, the limit of tokens ended the response.
        prompt_index: b of each row, so that rows of one prompt form a group.
        answers: for verifiers; None where there is none.
        domain: index into the datamodule's ``domains``.
        modality: index into ``MODALITIES``.
        keys: ``shard:key`` of every prompt's record.
        real: False in rows that are to be counted nowhere.
        reward_prompts: those of the B prompts, once; None where the reward model reads the policy's tokens.
    """

    prompts: Prompts
    responses: Responses
    ended: Bool[Tensor, " R"]
    prompt_index: Int[Tensor, " R"]
    answers: list[Any]
    domain: Int[Tensor, " R"]
    modality: Int[Tensor, " R"]
    keys: list[str]
    real: Bool[Tensor, " R"]
    reward_prompts: RewardPrompts | None = None

    @property
    def lengths(self) -> Int[Tensor, " R"]:
        """Tokens of each response, the stop token included."""
        return self.responses.mask.sum(dim=1)

    @property
    def empty(self) -> Bool[Tensor, " R"]:
        """Whether a response says nothing: its first token is the stop token."""
        return self.ended & (self.lengths == 1)

    @property
    def has_answer(self) -> Bool[Tensor, " R"]:
        """Whether the record of a row has an answer, so that a verifier can say something about it."""
        return torch.tensor([answer is not None for answer in self.answers], device=self.ended.device)


class CandidateBatch(NamedTuple):
    """Prompts with any number of responses each, to be scored: R responses to B prompts.

    Attributes:
        prompts: the prompts with their media.
        responses: the responses to the first prompt, then those to the second one, and so on.
        prompt_index: row of ``prompts`` that each response belongs to.
        names: what each response is called: ``chosen``, or its number.
        domain: name of each prompt's domain.
        modality: index into ``MODALITIES``.
        keys: key of every prompt's record, for messages and tables.
        shards: file that each record comes from.
        rows: number of each record among all that are scored.
        real: False in the row of a batch that has none of its own: a copy of a record, to be counted nowhere.
        bad: row, key, shard and reason of the records that were to be in the batch and cannot be used.
    """

    prompts: Prompts
    responses: Responses
    prompt_index: Int[Tensor, " R"]
    names: list[str]
    domain: list[str]
    modality: Int[Tensor, " B"]
    keys: list[str]
    shards: list[str]
    rows: list[int]
    real: Bool[Tensor, " B"]
    bad: list[tuple[int, str, str, str]]


class Answers(NamedTuple):
    """What a policy answered in validation, for a person to look at.

    A validation step gives them by the name of the way of drawing: ``{"greedy": …, "sampled": …}``.

    Attributes:
        texts: the responses, in the rows of a ``Rollout`` of the batch.
        scores: of each response.
        correct: whether each response gives the record's answer; None where nothing verified that.
    """

    texts: list[str]
    scores: Float[Tensor, " R"]
    correct: Bool[Tensor, " R"] | None
