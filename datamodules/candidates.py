# SPDX-License-Identifier: Apache-2.0
"""Prompts with any number of responses to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ixc_lightning.datamodules.collate import modalities, prompts, responses
from ixc_lightning.datamodules.conversations import Candidates
from ixc_lightning.datamodules.processing import ChatEncoder, Encoded
from ixc_lightning.types import CandidateBatch


class EncodedCandidates(NamedTuple):
    """Responses to one prompt with their tokens, and their place among all records."""

    row: int
    candidates: Candidates
    encoded: Encoded


def encode_candidates(encoder: ChatEncoder, candidates: Candidates, *, row: int) -> EncodedCandidates:
    """Encode a prompt and its responses.

    Raises:
        InputError: naming the record, if it cannot be encoded.
    """
    encoded = encoder(candidates.record, candidates.prompt, candidates.answers)
    return EncodedCandidates(row, candidates, encoded)


def candidate_batch(
    samples: Sequence[EncodedCandidates],
    *,
    is_real: bool = True,
    bad: Sequence[tuple[int, str, str, str]] = (),
) -> CandidateBatch:
    """The batch of the samples, one prompt each, in their order.

    Args:
        samples: the prompts with their responses.
        is_real: False if they only fill the place of a batch.
        bad: row, key, shard and reason of records that were to be here and cannot be used.
    """
    records = [sample.candidates.record for sample in samples]
    counts = torch.tensor([len(sample.encoded.responses) for sample in samples])
    return CandidateBatch(
        prompts=prompts([sample.encoded for sample in samples]),
        responses=responses([ids for sample in samples for ids in sample.encoded.responses]),
        prompt_index=torch.arange(len(samples)).repeat_interleave(counts),
        names=[name for sample in samples for name in sample.candidates.names],
        domain=[record.domain for record in records],
        modality=modalities(records),
        keys=[record.key for record in records],
        shards=[record.shard for record in records],
        rows=[sample.row for sample in samples],
        real=torch.full((len(samples),), is_real),
        bad=list(bad),
    )
