# SPDX-License-Identifier: Apache-2.0
"""Limits hold for any number of threads: of a minute, of tokens, of money."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from ixc_lightning.rollout import Limits, judge_limits
from ixc_lightning.rollout.judge_limits import Meter
from ixc_lightning.types import InputError

WINDOW = 0.5
SLACK = 0.02  # seconds; timers may be early by their resolution


def _times(limits, requests, *, tokens=1):
    """When each of the requests of eight threads went through."""
    meter, stop = Meter(limits, max_output=1), threading.Event()
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: meter.wait(tokens, stop)[0], range(requests)))
    return sorted(sent)


@pytest.fixture
def _short_minute(monkeypatch):
    monkeypatch.setattr(judge_limits, "WINDOW", WINDOW)


@pytest.mark.usefixtures("_short_minute")
def test_no_minute_has_more_requests_than_allowed():
    times = _times(Limits(requests_per_minute=4.0), 10)
    assert all(later - earlier > WINDOW - SLACK for earlier, later in zip(times, times[4:], strict=False))
    assert times[3] - times[0] < WINDOW  # and no fewer


@pytest.mark.usefixtures("_short_minute")
def test_no_minute_has_more_tokens_than_allowed():
    times = _times(Limits(tokens_per_minute=100.0), 6, tokens=40)
    assert all(later - earlier > WINDOW - SLACK for earlier, later in zip(times, times[2:], strict=False))


@pytest.mark.usefixtures("_short_minute")
def test_a_request_larger_than_a_minute_allows_goes_alone():
    times = _times(Limits(tokens_per_minute=10.0), 3, tokens=40)
    assert all(later - earlier > WINDOW - SLACK for earlier, later in pairwise(times))


@pytest.mark.usefixtures("_short_minute")
def test_a_guess_that_was_too_small_counts_as_what_it_was():
    meter, stop = Meter(Limits(tokens_per_minute=100.0), max_output=1), threading.Event()
    first = meter.wait(1, stop)
    first[1] = 100.0
    assert meter.wait(1, stop)[0] - first[0] > WINDOW - SLACK


def test_nobody_goes_through_while_the_server_wants_it():
    meter, begun = Meter(Limits(), max_output=1), time.monotonic()
    meter.hold(0.3)
    assert meter.wait(1, threading.Event())[0] - begun > 0.3 - SLACK


def test_who_waits_is_let_go_when_the_run_ends():
    meter, stop = Meter(Limits(), max_output=1), threading.Event()
    meter.hold(60.0)
    threading.Timer(0.1, stop.set).start()
    begun = time.monotonic()
    meter.wait(1, stop)
    assert time.monotonic() - begun < 10


def test_requests_under_way_are_counted_before_their_replies_are_there():
    meter = Meter(Limits(total_tokens=100), max_output=10)
    assert [meter.reserve(40) for _ in range(3)] == [True, True, False]  # 50 each
    meter.settle(20, 5)
    meter.settle()  # no reply came
    assert (meter.input_tokens, meter.output_tokens) == (20, 5)
    assert meter.reserve(40)  # 25 + 50
    assert not meter.reserve(40)


def test_the_largest_request_seen_stands_for_those_to_come():
    meter = Meter(Limits(total_tokens=100), max_output=10)
    meter.add(60, 10)
    assert not meter.reserve(1)  # 70 + 70


def test_what_an_earlier_run_paid_counts():
    meter = Meter(Limits(total_cost=1.0, input_price=1.0, output_price=2.0), max_output=0)
    meter.add(400_000, 300_000)
    assert meter.cost == pytest.approx(1.0)
    assert not meter.reserve(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "limits.concurrency is 0"),
        ({"requests_per_minute": 0.0}, "limits.requests_per_minute"),
        ({"tokens_per_minute": float("nan")}, "limits.tokens_per_minute"),
        ({"total_tokens": -1}, "limits.total_tokens"),
        ({"total_cost": 1.0}, "needs limits.input_price"),
    ],
)
def test_limits_that_limit_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Limits(**options)
