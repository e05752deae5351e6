# SPDX-License-Identifier: Apache-2.0
"""Requests of many callers in batches: one thread encodes, one owns the model."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

import torch

from ixc_lightning.datamodules.candidates import encode_candidates
from ixc_lightning.datamodules.conversations import Candidates
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.scoring import Scorer, unique_answers
from ixc_lightning.serving.waiting import TokenQueue, Waiting
from ixc_lightning.types import InputError

READ_AHEAD = 2
"""Batches that may wait encoded: the model never waits for the encoder, and memory stays bounded."""

logger = logging.getLogger(__name__)


class BusyError(Exception):
    """No more requests are taken at present; the same one may be sent again."""


class FaultError(Exception):
    """Something failed that is not the caller's fault; the log says what."""


class Score(NamedTuple):
    """One response's score.

    Attributes:
        raw: as the score head gives it.
        normalised: with mean 0 and standard deviation 1 on the data that the model was last validated on.
    """

    raw: float
    normalised: float


class _Job:
    """One request: its prompts, and the scores as they come. Equal responses to a prompt are scored once."""

    def __init__(self, candidates: Sequence[Candidates], encoder: ChatEncoder) -> None:
        self.encoder = encoder
        once = [unique_answers(one.answers) for one in candidates]
        self.places = [places for _, places in once]
        self.waiting = deque(
            one._replace(answers=answers) for one, (answers, _) in zip(candidates, once, strict=True)
        )
        self.scores: list[list[Score] | None] = [None] * len(candidates)
        self.future: Future[list[list[Score]]] = Future()
        # Who gave up lets go of the media at once, not when its turn comes.
        self.future.add_done_callback(lambda _: self.waiting.clear())

    def next(self) -> Candidates | None:
        """The next prompt to encode; None if the caller gave up."""
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def finish(self, *, error: Exception | None = None) -> None:
        try:
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(
                    [
                        [scores[place] for place in places]
                        for scores, places in zip(self.scores, self.places, strict=True)
                        if scores is not None
                    ]
                )
        except InvalidStateError:  # the caller gave up just now
            pass


class Batcher:
    """Scores the prompts of many requests together, each as if it were alone.

    Args:
        scorer: the reward model and its processor.
        batch_tokens: most tokens of one forward pass, padding included; a longer sequence goes alone.
        max_requests: requests that may wait or be at work; more are refused.
        on_batch: is told the prompts of each batch before it is scored, in the model's thread.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        batch_tokens: int,
        max_requests: int,
        on_batch: Callable[[Sequence[Waiting]], None] = lambda batch: None,
    ) -> None:
        self.scorer = scorer
        self.batch_tokens = batch_tokens
        self.max_requests = max_requests
        self.on_batch = on_batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ready = TokenQueue(READ_AHEAD * batch_tokens)
        self._open = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._encode, self._score)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take no more requests, answer those that wait, and end."""
        with self._lock:
            self._is_closed = True
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def num_open(self) -> int:
        """Requests that wait or are at work."""
        return self._open

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self._is_closed or self._open >= self.max_requests

    @property
    def is_alive(self) -> bool:
        """Whether both threads are at work."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(
        self, candidates: Sequence[Candidates], encoder: ChatEncoder | None = None
    ) -> Future[list[list[Score]]]:
        """The scores of the responses to each prompt, when they are there; cancel the future to give up.

        Args:
            candidates: prompts with their responses.
            encoder: what encodes them; null is the scorer's.

        Raises:
            BusyError: too many requests wait, or the service stops.
        """
        with self._lock:
            if self.is_full:
                raise BusyError("too many requests wait; send it again later")
            self._open += 1
        job = _Job(candidates, encoder or self.scorer.encoder)
        job.future.add_done_callback(self._leave)
        self._jobs.put(job)
        return job.future

    def _leave(self, _: object) -> None:
        with self._lock:
            self._open -= 1

    def _encode(self) -> None:
        while (job := self._jobs.get()) is not None:
            for number in range(len(job.scores)):
                if (one := job.next()) is None:
                    break
                try:
                    sample = encode_candidates(job.encoder, one, row=number)
                except InputError as error:
                    job.finish(error=error)
                    break
                except Exception:
                    logger.exception("a prompt could not be encoded")
                    job.finish(error=FaultError())
                    break
                self._ready.put(Waiting(sample, job, number))
        self._ready.close()

    def _score(self) -> None:
        while batch := self._ready.take(self.batch_tokens):
            wanted = [one for one in batch if not one.owner.future.done()]
            try:
                self._score_batch(wanted)
            except Exception:
                logger.exception("a batch of %d prompts failed; each is scored alone", len(wanted))
                self._score_alone(wanted)

    def _score_alone(self, batch: Sequence[Waiting]) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for one in batch:
            try:
                self._score_batch([one])
            except Exception:
                logger.exception("a prompt of %d responses of %d tokens failed", one.rows, one.length)
                one.owner.finish(error=FaultError())

    def _score_batch(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        self.on_batch(batch)
        longest = max(one.length for one in batch)
        size = max(1, self.batch_tokens // longest)
        scores = self.scorer.score_encoded([one.sample for one in batch], size=size)
        for one, own in zip(batch, scores, strict=True):
            one.owner.scores[one.number] = list(map(Score, own, self.scorer.normalise(own)))
            if None not in one.owner.scores:
                one.owner.finish()
