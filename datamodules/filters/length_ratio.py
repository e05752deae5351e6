# SPDX-License-Identifier: Apache-2.0
"""The paper's length constraint: a chosen response may not be much longer than the rejected one."""

from __future__ import annotations

from ixc_lightning.datamodules.filters.base import Filter
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import InputError, Record


class LengthRatio(Filter):
    """Drops pairs whose chosen response is much longer than the rejected one.

    The paper removes them so that length is not learned as quality (InternLM-XComposer2.5-Reward, §3,
    length constraints); it prints no threshold, so there is no default.

    Args:
        limit: largest allowed length of chosen over rejected, in tokens of the model's tokenizer.
        slack: differences of up to this many tokens are always allowed, so that "It is 4." against "5" can
            stay.

    Raises:
        InputError: a limit below 1, which would drop pairs of equal length.
    """

    def __init__(self, limit: float, slack: int = 0) -> None:
        if not limit >= 1:
            raise InputError(
                f"LengthRatio.limit is {limit}, but must be at least 1: it bounds len(chosen) / len(rejected)"
            )
        self.limit = limit
        self.slack = slack

    def keep(self, record: Record, encoder: ChatEncoder) -> bool:
        """Whether len(chosen) ≤ limit · len(rejected), or len(chosen) − len(rejected) ≤ slack, in tokens."""
        if record.chosen is None:
            raise InputError(f"{record.shard}:{record.key}: LengthRatio compares pairs, and this is none")
        chosen, rejected = encoder.response_lengths(record)
        return chosen <= self.limit * rejected or chosen - rejected <= self.slack
