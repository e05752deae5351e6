# SPDX-License-Identifier: Apache-2.0
"""Records to batches: encoding and padding, done in the loader's workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ixc_lightning.datamodules.processing import ChatEncoder, Encoded
from ixc_lightning.functional.media import merge_media
from ixc_lightning.types import MODALITIES, InstructionBatch, PreferenceBatch, Prompts, Record, Responses


class PreferenceCollator:
    """Preference records to a ``PreferenceBatch``: each prompt and its pixels once, both responses after it.

    Args:
        encoder: encodes prompts and responses.
        domains: names of the domains, in the order of their ids.
    """

    def __init__(self, encoder: ChatEncoder, domains: Sequence[str]) -> None:
        self.encoder = encoder
        self.domains = {name: index for index, name in enumerate(domains)}

    def __call__(self, records: Sequence[Record]) -> PreferenceBatch:
        """The batch of the records, one row each, in their order.

        Raises:
            InputError: naming the record, if it cannot be encoded.
        """
        encoded = [
            self.encoder(record, record.messages, [record.chosen or (), record.rejected or ()])
            for record in records
        ]
        return PreferenceBatch(
            prompts=_prompts(encoded),
            chosen=_responses([sample.responses[0] for sample in encoded]),
            rejected=_responses([sample.responses[1] for sample in encoded]),
            margin=torch.tensor([record.margin for record in records]),
            domain=torch.tensor([self.domains[record.domain] for record in records]),
            modality=_modality(records),
            keys=_keys(records),
        )


class InstructionCollator:
    """Instruction records to an ``InstructionBatch``: the last turn is the response, the rest the prompt.

    Args:
        encoder: encodes prompts and responses.
        domains: names of the domains, in the order of their ids.
    """

    def __init__(self, encoder: ChatEncoder, domains: Sequence[str]) -> None:
        self.encoder = encoder
        self.domains = {name: index for index, name in enumerate(domains)}

    def __call__(self, records: Sequence[Record]) -> InstructionBatch:
        """The batch of the records, one row each, in their order.

        Raises:
            InputError: naming the record, if it cannot be encoded.
        """
        encoded = [self.encoder(record, record.messages[:-1], [record.messages[-1:]]) for record in records]
        return InstructionBatch(
            prompts=_prompts(encoded),
            responses=_responses([sample.responses[0] for sample in encoded]),
            domain=torch.tensor([self.domains[record.domain] for record in records]),
            modality=_modality(records),
            keys=_keys(records),
        )


def _prompts(encoded: Sequence[Encoded]) -> Prompts:
    ids, mask = _pad([sample.ids for sample in encoded])
    names = {name for sample in encoded for name in sample.token_types}
    types = {
        name: _pad([sample.token_types.get(name, torch.zeros_like(sample.ids)) for sample in encoded])[0]
        for name in sorted(names)
    }
    return Prompts(ids, mask, types, merge_media([sample.media for sample in encoded]))


def _responses(ids: Sequence[Tensor]) -> Responses:
    return Responses(*_pad(ids))


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows padded with 0 on the right, and the mask of what is real."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), mask


def _modality(records: Sequence[Record]) -> Tensor:
    return torch.tensor([MODALITIES.index(record.modality) for record in records])


def _keys(records: Sequence[Record]) -> list[str]:
    return [f"{record.shard}:{record.key}" for record in records]
