# SPDX-License-Identifier: Apache-2.0
"""Prompt batches and rollouts, made of samples or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ixc_lightning.functional.rollout import until_stop
from ixc_lightning.rollout import stack_rollout
from ixc_lightning.types import PromptBatch, Prompts, Responses, Rollout
from tests.families import collate

STOP = 1


def prompt_batch(
    samples: Sequence[dict[str, Tensor]], answers: Sequence[Any] | None = None, **padding: Any
) -> PromptBatch:
    """The batch of samples of a family's processor."""
    return of_prompts(collate(samples, **padding), answers)


def of_prompts(prompts: Prompts, answers: Sequence[Any] | None = None) -> PromptBatch:
    """A batch around given prompts; row b has the key ``set:b`` and the domain b."""
    rows = len(prompts.ids)
    none = torch.zeros(rows, 0, dtype=torch.long)
    return PromptBatch(
        prompts=prompts,
        reference=Responses(none, none.bool()),
        answers=list(answers or [None] * rows),
        domain=torch.arange(rows),
        modality=torch.zeros(rows, dtype=torch.long),
        keys=[f"set:{row}" for row in range(rows)],
        real=torch.ones(rows, dtype=torch.bool),
        position=rows,
        bad=[],
    )


def rollout_of(tokens: Sequence[Sequence[int]], answers: Sequence[Any] | None = None) -> Rollout:
    """One sample for each of as many prompts of one token; ``STOP`` ends a row."""
    ids = torch.tensor(tokens)
    mask, ended = until_stop(ids, stop_tokens=[STOP])
    ones = torch.ones(len(ids), 1, dtype=torch.long)
    batch = of_prompts(Prompts(ones, ones.bool(), {}, {}), answers)
    return stack_rollout(batch, Responses(ids.masked_fill(~mask, 0), mask), ended)
