# SPDX-License-Identifier: Apache-2.0
"""Instruction records with the answers of other records beside their own, to see how much better that is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random

import numpy as np

from ixc_lightning.datamodules.candidate_files import ShardCandidates
from ixc_lightning.datamodules.conversations import Candidates, Messages, candidates_of
from ixc_lightning.datamodules.record_checks import Place
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.types import InputError

OWN = "response"
"""What a record's own answer is called among the scores; the others are ``other 1``, ``other 2``, …"""
MAX_TRIES = 50
"""Records that are looked at for each other answer."""
NEAR = 2000
"""Others lie at most so many records of the group away, so that few shards are read at a time."""


class ContrastCandidates(ShardCandidates):
    """The last turn of instruction records, and after it the last turns of other records.

    Others are drawn among the nearest records of the same domain and modality, or among all where those say
    nothing else. The draw depends on the number of the record alone, so that it is the same in every process
    and after a restart. An answer that reads as the record's own does is never another one.

    Args:
        shards: as in ``ShardDataset``.
        others: answers of other records for each.

    Raises:
        InputError: as ``ShardDataset``.
    """

    def __init__(self, shards: str | Sequence[str], *, others: int) -> None:
        super().__init__(shards, kind=Kind.INSTRUCTION)
        self.others = others
        codes: defaultdict[tuple[str, str], int] = defaultdict(lambda: len(codes))
        groups = (codes[self._group(index)] for index in range(len(self.records)))
        self.group = np.fromiter(groups, dtype=np.int32, count=len(self.records))
        self.by_group = np.argsort(self.group, kind="stable")
        self.rank = np.empty_like(self.by_group)
        self.rank[self.by_group] = np.arange(len(self.records))
        self.ends = np.cumsum(np.bincount(self.group))

    def candidates(self, index: int) -> Candidates:
        """Return the own and the other answers of a record.

        Raises:
            InputError: it is not valid, or no other record has another answer.
        """
        own = candidates_of(self.records.record(index))
        found: list[Messages] = []
        for other in self._draws(index):
            answer = self._answer(other)
            if answer is not None and _text(answer) != _text(own.answers[0]):
                found.append(answer)
            if len(found) == self.others:
                break
        if not found:
            raise Place(own.record.shard, own.record.key).error(
                "messages", "no other record has another answer to compare with; set data.others to 0"
            )
        names = [OWN, *(f"other {number}" for number in range(1, len(found) + 1))]
        return Candidates(own.record, own.prompt, names, [*own.answers, *found])

    @property
    def fingerprint(self) -> str:
        """As for ``ShardCandidates``, and of the number of other answers."""
        return blake2b(f"{super().fingerprint}:{self.others}".encode(), digest_size=16).hexdigest()

    def _draws(self, index: int) -> Iterator[int]:
        """Other records: of the same group first, then of all."""
        random, group, rank = Random(index), int(self.group[index]), int(self.rank[index])
        start, end = int(self.ends[group - 1]) if group else 0, int(self.ends[group])
        near = max(start, rank - NEAR), min(end, rank + NEAR + 1)
        for low, high in (near, (0, len(self.by_group))):
            for _ in range(MAX_TRIES * self.others):
                other = int(self.by_group[random.randrange(low, high)])
                if other != index:
                    yield other

    def _answer(self, index: int) -> Messages | None:
        """The last turn of a record, or None if it is not valid: that is said when it comes to its turn."""
        try:
            return candidates_of(self.records.record(index, media=False)).answers[0]
        except InputError:
            return None

    def _group(self, index: int) -> tuple[str, str]:
        try:
            return self.records.domain(index), self.records.modality(index)
        except InputError:  # the index of its shard is damaged
            return "", ""


def _text(answer: Messages) -> list[str]:
    return [part["text"].strip() for message in answer for part in message["content"]]
