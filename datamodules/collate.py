# SPDX-License-Identifier: Apache-2.0
"""Records to batches: encoding and padding, done in the loader's workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ixc_lightning.datamodules.pixels import merge_pixels
from ixc_lightning.datamodules.processing import ChatEncoder, Encoded
from ixc_lightning.datamodules.quarantine import BadSample
from ixc_lightning.functional.media import number_alike
from ixc_lightning.types import MODALITIES, InstructionBatch, PreferenceBatch, Prompts, Record, Responses

Batch = TypeVar("Batch")
Sample: TypeAlias = tuple[Record, Encoded]
"""A record, and what it is encoded to."""


class Collator(ABC, Generic[Batch]):
    """Turns records into one kind of batch.

    Args:
        encoder: encodes prompts and responses.
        domains: names of the domains, in the order of their ids.
    """

    def __init__(self, encoder: ChatEncoder, domains: Sequence[str]) -> None:
        self.encoder = encoder
        self.domains = {name: index for index, name in enumerate(domains)}

    def __call__(self, records: Sequence[Record]) -> Batch:
        """The batch of records that stand in no order, encoded first; raises as ``encode``."""
        samples = [(record, self.encode(record)) for record in records]
        return self.collate(samples, real=[True] * len(samples), position=0, bad=[])

    @abstractmethod
    def encode(self, record: Record) -> Encoded:
        """Encode one record.

        Raises:
            InputError: naming the record, if it cannot be encoded.
        """

    @abstractmethod
    def collate(
        self, samples: Sequence[Sample], *, real: Sequence[bool], position: int, bad: Sequence[BadSample]
    ) -> Batch:
        """The batch of the samples, one row each, in their order.

        Args:
            samples: the rows.
            real: False for rows that only fill the batch up.
            position: place in the global order behind the batch's step.
            bad: samples that were to be here and cannot be used.
        """


class PreferenceCollator(Collator[PreferenceBatch]):
    """Preference records to a ``PreferenceBatch``: prompt and pixels once, both responses after them."""

    def encode(self, record: Record) -> Encoded:
        """Encode the prompt and both responses."""
        return self.encoder(record, record.messages, [record.chosen or (), record.rejected or ()])

    def collate(
        self, samples: Sequence[Sample], *, real: Sequence[bool], position: int, bad: Sequence[BadSample]
    ) -> PreferenceBatch:
        """The batch of the samples, one row each, in their order."""
        records, encoded = zip(*samples, strict=True)
        return PreferenceBatch(
            prompts=prompts(encoded),
            chosen=responses([sample.responses[0] for sample in encoded]),
            rejected=responses([sample.responses[1] for sample in encoded]),
            margin=torch.tensor([record.margin for record in records]),
            domain=torch.tensor([self.domains[record.domain] for record in records]),
            modality=modalities(records),
            keys=keys(records),
            real=torch.tensor(real),
            position=position,
            bad=list(bad),
        )


class InstructionCollator(Collator[InstructionBatch]):
    """Instruction records to an ``InstructionBatch``: the last turn is the response, the rest the prompt."""

    def encode(self, record: Record) -> Encoded:
        """Encode the prompt and its response."""
        return self.encoder(record, record.messages[:-1], [record.messages[-1:]])

    def collate(
        self, samples: Sequence[Sample], *, real: Sequence[bool], position: int, bad: Sequence[BadSample]
    ) -> InstructionBatch:
        """The batch of the samples, one row each, in their order."""
        records, encoded = zip(*samples, strict=True)
        return InstructionBatch(
            prompts=prompts(encoded),
            responses=responses([sample.responses[0] for sample in encoded]),
            domain=torch.tensor([self.domains[record.domain] for record in records]),
            modality=modalities(records),
            keys=keys(records),
            real=torch.tensor(real),
            position=position,
            bad=list(bad),
        )


def prompts(encoded: Sequence[Encoded]) -> Prompts:
    """The prompts, padded on the right, and all their pictures in row order, equal ones once."""
    ids, mask = _pad([sample.ids for sample in encoded])
    names = {name for sample in encoded for name in sample.token_types}
    types = {
        name: _pad([sample.token_types.get(name, torch.zeros_like(sample.ids)) for sample in encoded])[0]
        for name in sorted(names)
    }
    numbers = number_alike([sample.media for sample in encoded])
    firsts = [sample for row, sample in enumerate(encoded) if numbers[row] not in numbers[:row]]
    media = merge_pixels([sample.media for sample in firsts], encoded[0].scales)
    is_shared = sum(bool(sample.media) for sample in encoded) > sum(bool(sample.media) for sample in firsts)
    return Prompts(ids, mask, types, media, torch.tensor(numbers) if is_shared else None)


def responses(ids: Sequence[Tensor]) -> Responses:
    """The responses, padded on the right."""
    return Responses(*_pad(ids))


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows padded with 0 on the right, and the mask of what is real."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), mask


def modalities(records: Sequence[Record]) -> Tensor:
    """Index into ``MODALITIES`` of each record."""
    return torch.tensor([MODALITIES.index(record.modality) for record in records])


def keys(records: Sequence[Record]) -> list[str]:
    """``shard:key`` of each record."""
    return [f"{record.shard}:{record.key}" for record in records]
