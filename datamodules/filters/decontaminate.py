# SPDX-License-Identifier: Apache-2.0
"""Leaving out of the training data what is in a benchmark."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import ClassVar, Literal

import numpy as np

from ixc_lightning.datamodules.filters._looks import LookIndex, looks_of
from ixc_lightning.datamodules.filters._words import shingles, words_of
from ixc_lightning.datamodules.filters.base import Filter
from ixc_lightning.datamodules.processing import ChatEncoder, text_of
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError, Record


class Decontaminate(Filter):
    """Drops records that share a picture, a clip or a question with a benchmark.

    A record goes for the first of these that holds, and ``matches`` counts which:

    - ``same_picture``: one of its images or clips has the very pixels of one in a benchmark.
    - ``near_picture``: one looks the same, though it was compressed, scaled or stored anew.
    - ``same_text``: what the user says is the same, but for case, punctuation and white space.
    - ``overlap``: runs of ``ngram`` words that both share cover at least ``overlap`` of the words of a
      benchmark's question (as for Tülu 3, arXiv 2411.15124, §3.2, with 8 words and a half).

    A question of fewer than ``ngram`` words, such as "Describe the picture.", is no evidence beside another
    picture: it counts as the same text only where neither record has media. Every medium is decoded once.
    Per picture of the benchmarks about 2 KB stay in memory.

    Args:
        benchmarks: shards of the benchmarks, as ``data.train`` takes them.
        kind: kind of their records.
        ngram: words of a run.
        overlap: share of the question's words.

    Raises:
        InputError: ``ngram`` below 1, or ``overlap`` not above 0 and at most 1.

    Attributes:
        matches: how many records went for each reason.
    """

    needs_media: ClassVar[bool] = True

    def __init__(
        self,
        benchmarks: str | list[str],
        *,
        kind: Literal["preference", "instruction", "prompt"] = "preference",
        ngram: int = 8,
        overlap: float = 0.5,
    ) -> None:
        if ngram < 1:
            raise InputError(f"Decontaminate.ngram is {ngram}, but a run has at least 1 word")
        if not 0 < overlap <= 1:
            raise InputError(f"Decontaminate.overlap is {overlap}, but is a share: above 0 and at most 1")
        self.benchmarks = benchmarks
        self.kind = kind
        self.ngram = ngram
        self.overlap = overlap
        self.matches: Counter[str] = Counter()
        self._looks: LookIndex | None = None

    def prepare(self, encoder: ChatEncoder) -> None:
        """Read the benchmarks, and start counting anew; raises if a record of them cannot be read."""
        looks, dataset = LookIndex(), ShardDataset(self.benchmarks, kind=self.kind)
        self._texts: set[tuple[str, ...]] = set()
        self._lengths: list[int] = []
        self._runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number in range(len(dataset)):
            record = dataset.record(number)
            own = looks_of(record, video_frames=encoder.video_frames)
            for look in own:
                looks.add(look, number)
            words = _question(record)
            self._lengths.append(len(words))
            if text := self._text(words, bool(own)):
                self._texts.add(text)
            if len(words) >= self.ngram:
                for place, run in enumerate(shingles(words, self.ngram).tolist()):
                    self._runs[run].append((number, place))
        dataset.close()
        self.matches.clear()
        self._looks = looks

    def keep(self, record: Record, encoder: ChatEncoder) -> bool:
        """Whether nothing of the record is in a benchmark; raises if a medium cannot be decoded."""
        if self._looks is None:
            self.prepare(encoder)
        assert self._looks is not None
        match = self._match(record, encoder, self._looks)
        if match:
            self.matches[match] += 1
        return match is None

    @property
    def details(self) -> dict[str, int]:
        """The same as ``matches``."""
        return dict(self.matches)

    def _match(self, record: Record, encoder: ChatEncoder, looks: LookIndex) -> str | None:
        own = looks_of(record, video_frames=encoder.video_frames)
        if any(looks.has_exact(look) for look in own):
            return "same_picture"
        if any(True for look in own for _ in looks.near(look)):
            return "near_picture"
        words = _question(record)
        if self._text(words, bool(own)) in self._texts:
            return "same_text"
        return "overlap" if self._overlaps(words) else None

    def _text(self, words: list[str], has_media: bool) -> tuple[str, ...] | None:
        """The text as it is looked up, or None if it is too short to say anything beside its media."""
        return None if has_media and len(words) < self.ngram else tuple(words)

    def _overlaps(self, words: list[str]) -> bool:
        covered: dict[int, set[int]] = defaultdict(set)
        if len(words) >= self.ngram:
            for run in np.unique(shingles(words, self.ngram)).tolist():
                for number, place in self._runs.get(run, ()):
                    covered[number].update(range(place, place + self.ngram))
        return any(len(places) >= self.overlap * self._lengths[number] for number, places in covered.items())


def _question(record: Record) -> list[str]:
    """The words of all that the user says."""
    return words_of(" ".join(text_of([turn]) for turn in record.messages if turn["role"] == "user"))
