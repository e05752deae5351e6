# SPDX-License-Identifier: Apache-2.0
"""Encoded prompts that wait for the model, within a budget of tokens."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from ixc_lightning.datamodules.candidates import EncodedCandidates


class Waiting(NamedTuple):
    """A prompt with its responses, encoded, and what it is a part of.

    Attributes:
        sample: the prompt with its responses.
        owner: who waits for the scores.
        number: which of the owner's prompts it is.
    """

    sample: EncodedCandidates
    owner: Any
    number: int

    @property
    def rows(self) -> int:
        """Sequences that it makes: one for each response."""
        return len(self.sample.encoded.responses)

    @property
    def length(self) -> int:
        """Tokens of the longest of these."""
        encoded = self.sample.encoded
        return len(encoded.ids) + max(map(len, encoded.responses))

    @property
    def tokens(self) -> int:
        """Tokens of all of them, each padded to the longest."""
        return self.rows * self.length


def fits(batch: Sequence[Waiting], more: Waiting, budget: int) -> bool:
    """Whether a batch with ``more`` in it has at most ``budget`` tokens once it is padded."""
    rows = sum(one.rows for one in batch) + more.rows
    return rows * max([more.length, *(one.length for one in batch)]) <= budget


class TokenQueue:
    """First in, first out, between one thread that encodes and one that scores.

    ``queue.Queue`` bounds a number of entries; here it is their tokens that take memory.

    Args:
        max_tokens: tokens that may wait. One entry may wait whatever it has.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._entries: deque[Waiting] = deque()
        self._tokens = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, entry: Waiting) -> None:
        """Add an entry, as soon as there is room for it."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._entries or self._tokens + entry.tokens <= self.max_tokens
            )
            self._entries.append(entry)
            self._tokens += entry.tokens
            self._changed.notify_all()

    def take(self, budget: int) -> list[Waiting]:
        """The first entries that fit a budget of padded tokens, at least one; none once all is done.

        It waits for the first, and for no other: what comes while the model is at work makes the next batch.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._closed)
            batch: list[Waiting] = []
            while self._entries and (not batch or fits(batch, self._entries[0], budget)):
                batch.append(self._entries.popleft())
            self._tokens -= sum(one.tokens for one in batch)
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
