# SPDX-License-Identifier: Apache-2.0
"""Prompts for a policy to answer, with the reference answers that verifiers compare with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ixc_lightning.datamodules.base import ShardDataModule
from ixc_lightning.datamodules.collate import Collator, Sample, keys, modalities, prompts, responses
from ixc_lightning.datamodules.processing import ChatEncoder, Encoded
from ixc_lightning.datamodules.quarantine import BadSample
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.types import InputError, PromptBatch, Record, RewardPrompts


class PromptDataModule(ShardDataModule):
    """Prompt records in, ``PromptBatch`` out. Arguments as in ``ShardDataModule``.

    Domains are mixed by giving ``train`` as a list of ``Source`` with weights. A step takes ``batch_size``
    prompts per rank; how often each is answered is the policy's business. ``max_tokens`` bounds the prompt
    alone, and a longer one is an error that names it: cutting would cut the question or its pictures.
    """

    kind = Kind.PROMPT
    reward_encoder: ChatEncoder | None = None

    def encode_for(self, source: str, *, response_suffix: str = "") -> ChatEncoder:
        """Encode every prompt for a reward model with tokens of its own as well, from the next loader on.

        ``max_tokens`` does not bound these: it counts the policy's tokens.

        Args:
            source: hub id or folder of the reward model's processor.
            response_suffix: text put after every response, such as a reward token.

        Returns:
            The encoder, which encodes answers too.

        Raises:
            InputError: the processor cannot be loaded or has no chat template.
        """
        self.reward_encoder = ChatEncoder(
            source, video_frames=self.video_frames, response_suffix=response_suffix
        )
        return self.reward_encoder

    def predicted_rows(self, batch: PromptBatch, step: int) -> list[int]:
        """Numbers of the records in this rank's batch of a step of prediction, without bad ones."""
        rank, world_size = self._ranks
        start = (step * world_size + rank) * self.eval_batch_size
        stop = min(start + self.eval_batch_size, len(self.dataset("predict")))
        return good_rows(batch, range(start, stop), self._predicted_name)

    def _predicted_name(self, row: int) -> str:
        try:
            return ":".join(self.dataset("predict").place(row))
        except InputError:  # the index of its shard is damaged, so nobody knows its key
            return ""

    def collator(self) -> PromptCollator:
        """Puts the prompts, and their answers as they are and as tokens."""
        return PromptCollator(self.encoder, self.domains, self.reward_encoder)


class PromptCollator(Collator[PromptBatch]):
    """Prompt records to a ``PromptBatch``.

    Args:
        encoder: encodes prompts for the policy.
        domains: names of the domains, in the order of their ids.
        reward_encoder: encodes them for a reward model that reads other tokens, if there is one.
    """

    def __init__(
        self, encoder: ChatEncoder, domains: Sequence[str], reward_encoder: ChatEncoder | None = None
    ) -> None:
        super().__init__(encoder, domains)
        self.reward_encoder = reward_encoder

    def encode(self, record: Record) -> Encoded:
        """Encode the prompt, which alone must keep to ``max_tokens``, and the answer as bare text."""
        encoded = self.encoder(record, record.messages, [])
        text = answer_text(record.answer)
        ids = self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        twice = None if self.reward_encoder is None else self.reward_encoder(record, record.messages, [])
        return encoded._replace(responses=[torch.tensor(ids, dtype=torch.long)], for_reward=twice)

    def collate(
        self, samples: Sequence[Sample], *, real: Sequence[bool], position: int, bad: Sequence[BadSample]
    ) -> PromptBatch:
        """The batch of the samples, one row each, in their order."""
        records, encoded = zip(*samples, strict=True)
        return PromptBatch(
            prompts=prompts(encoded),
            reference=responses([sample.responses[0] for sample in encoded]),
            answers=[record.answer for record in records],
            domain=torch.tensor([self.domains[record.domain] for record in records]),
            modality=modalities(records),
            keys=keys(records),
            real=torch.tensor(real),
            position=position,
            bad=list(bad),
            reward_prompts=reward_prompts(samples),
        )


def good_rows(batch: PromptBatch, rows: Iterable[int], name: Callable[[int], str]) -> list[int]:
    """Those of some records that a batch holds, in its order.

    Args:
        batch: holds them but for the bad ones.
        rows: numbers of the records that were to be in it.
        name: the key of a record as the batch has it.
    """
    keys = [key for key, real in zip(batch.keys, batch.real.tolist(), strict=True) if real]
    good: list[int] = []
    for row in rows:
        if len(good) < len(keys) and name(row) == keys[len(good)]:
            good.append(row)
    return good


def reward_prompts(samples: Sequence[Sample]) -> RewardPrompts | None:
    """The prompts as a reward model with tokens of its own reads them; None where there is no such one."""
    encoded = [sample.for_reward for _, sample in samples if sample.for_reward is not None]
    return RewardPrompts(prompts(encoded), [record.messages for record, _ in samples]) if encoded else None


def answer_text(answer: Any) -> str:
    """An answer for a person to read: a text as it is, nothing for None, anything else as JSON."""
    if answer is None:
        return ""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
