# SPDX-License-Identifier: Apache-2.0
"""Prompts for a policy to answer, with the reference answers that verifiers compare with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from ixc_lightning.datamodules.base import ShardDataModule
from ixc_lightning.datamodules.collate import Collator, Sample, keys, modalities, prompts, responses
from ixc_lightning.datamodules.processing import Encoded
from ixc_lightning.datamodules.quarantine import BadSample
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.types import PromptBatch, Record


class PromptDataModule(ShardDataModule):
    """Prompt records in, ``PromptBatch`` out. Arguments as in ``ShardDataModule``.

    Domains are mixed by giving ``train`` as a list of ``Source`` with weights. A step takes ``batch_size``
    prompts per rank; how often each is answered is the policy's business. ``max_tokens`` bounds the prompt
    alone, and a longer one is an error that names it: cutting would cut the question or its pictures.
    """

    kind = Kind.PROMPT

    def collator(self) -> PromptCollator:
        """Puts the prompts, and their answers as they are and as tokens."""
        return PromptCollator(self.encoder, self.domains)


class PromptCollator(Collator[PromptBatch]):
    """Prompt records to a ``PromptBatch``."""

    def encode(self, record: Record) -> Encoded:
        """Encode the prompt, which alone must keep to ``max_tokens``, and the answer as bare text."""
        encoded = self.encoder(record, record.messages, [])
        text = answer_text(record.answer)
        ids = self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return encoded._replace(responses=[torch.tensor(ids, dtype=torch.long)])

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
        )


def answer_text(answer: Any) -> str:
    """An answer for a person to read: a text as it is, nothing for None, anything else as JSON."""
    if answer is None:
        return ""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
