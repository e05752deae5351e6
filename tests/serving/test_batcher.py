# SPDX-License-Identifier: Apache-2.0
"""Requests in batches: many at once, each answered as if alone, and none held up by another's fault."""

import logging
from concurrent.futures import CancelledError

import pytest

from ixc_lightning.datamodules.conversations import given_candidates
from ixc_lightning.serving.batcher import Batcher, BusyError, FaultError
from ixc_lightning.types import InputError
from tests.serving.records import picture
from tests.serving.service import until

LONG = 60.0  # seconds, on a busy machine


def _one(question, *answers, images=()):
    return given_candidates(question, list(answers), images=list(images), shard="conversation", key="0")


@pytest.fixture
def batcher(gated):
    one = Batcher(gated, batch_tokens=120, max_requests=6)
    one.start()
    yield one
    gated.gate.set()
    one.close()


def _raw(future):
    return [[score.raw for score in own] for own in future.result(LONG)]


def test_requests_that_wait_are_scored_together_and_each_as_if_alone(batcher, gated, scorer):
    questions = [_one("how many?", word) for word in ("one", "two", "three", "four", "five")]
    futures = [batcher.submit([question]) for question in questions]
    gated.gate.set()
    for question, future in zip(questions, futures, strict=True):
        ((expected,),) = scorer.score_candidates([question])
        assert _raw(future) == [[pytest.approx(expected, abs=1e-5)]]
        ((score,),) = future.result()
        assert score.normalised == pytest.approx((score.raw - 0.5) / 2.0, abs=1e-5)
    # The model was held up on what came first, and then took the others in one batch.
    assert sum(gated.sizes) == 5
    assert max(gated.sizes) >= 4 - gated.sizes[0] + 1


def test_a_batch_has_no_more_tokens_than_the_budget_and_a_long_request_goes_in_parts(batcher, gated):
    sizes = []
    batcher.on_batch = lambda batch: sizes.append(
        sum(one.rows for one in batch) * max(one.length for one in batch)
    )
    futures = [batcher.submit([_one("how many? " * 9, str(n))]) for n in range(6)]
    gated.gate.set()
    for future in futures:
        future.result(LONG)
    assert len(sizes) > 1
    assert max(sizes) <= 120
    many = batcher.submit([_one("how many? " * 9, *map(str, range(20)))])
    assert len(_raw(many)[0]) == 20


def test_more_requests_than_may_wait_are_refused_and_room_is_made_by_answers(batcher, gated):
    futures = [batcher.submit([_one("how many?", str(n))]) for n in range(6)]
    assert batcher.is_full
    with pytest.raises(BusyError, match="too many requests wait"):
        batcher.submit([_one("how many?", "six")])
    gated.gate.set()
    for future in futures:
        future.result(LONG)
    until(lambda: batcher.num_open == 0)
    assert len(_raw(batcher.submit([_one("how many?", "six")]))) == 1


def test_who_gives_up_makes_room_at_once_and_is_not_scored(batcher, gated):
    first = batcher.submit([_one("how many?", "one")])
    until(lambda: batcher._jobs.empty())
    rest = [batcher.submit([_one("how many?", str(n))]) for n in range(2, 6)]
    for future in rest[:-1]:
        assert future.cancel()
    assert batcher.num_open == 2
    gated.gate.set()
    assert len(_raw(first)) == len(_raw(rest[-1])) == 1
    with pytest.raises(CancelledError):
        rest[0].result()
    assert sum(gated.sizes) == 2


def test_a_prompt_that_cannot_be_encoded_fails_alone(batcher, gated):
    gated.gate.set()
    bad = batcher.submit([_one("what is it?", "one", images=[picture()[:900]])])
    good = batcher.submit([_one("how many?", "one")])
    with pytest.raises(InputError, match="cannot be decoded"):
        bad.result(LONG)
    assert len(_raw(good)) == 1


def test_a_prompt_at_which_the_model_fails_takes_no_other_with_it(batcher, gated, monkeypatch, caplog):
    score = gated.score_encoded

    def fail(samples, *, size):
        if any("bad" in str(one.candidates.prompt) for one in samples):
            raise InputError("nan")
        return score(samples, size=size)

    held = batcher.submit([_one("how many?", "one")])
    until(lambda: batcher._jobs.empty())
    monkeypatch.setattr(gated, "score_encoded", fail)
    bad, good = batcher.submit([_one("bad?", "one")]), batcher.submit([_one("how many?", "two")])
    with caplog.at_level(logging.ERROR):
        gated.gate.set()
        assert len(_raw(held)) == len(_raw(good)) == 1
        with pytest.raises(FaultError):  # not the caller's fault, whatever the model says
            bad.result(LONG)
    assert "each is scored alone" in caplog.text
    assert batcher.is_alive


def test_closing_answers_what_waits_and_takes_no_more(gated):
    batcher = Batcher(gated, batch_tokens=120, max_requests=6)
    batcher.start()
    futures = [batcher.submit([_one("how many?", str(n))]) for n in range(4)]
    gated.gate.set()
    batcher.close()
    assert all(future.done() and len(_raw(future)) == 1 for future in futures)
    assert not batcher.is_alive
    with pytest.raises(BusyError):
        batcher.submit([_one("how many?", "one")])
