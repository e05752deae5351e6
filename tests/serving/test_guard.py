# SPDX-License-Identifier: Apache-2.0
"""Callers who are slow, leave, send too much or come in crowds: they get a reason, and hold nobody up."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ixc_lightning.serving.guard import Guard
from tests.serving.records import said
from tests.serving.service import serving, until

BODY = json.dumps({"conversations": [said("two")]}).encode()
SOON = 15.0  # seconds within which an answer comes that nobody holds up, on a busy machine


def _connect(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)


def _head(length, *more):
    lines = [
        "POST /score HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _post(client):
    return client.post("/score", content=BODY, headers={"Content-Type": "application/json"})


def _gauge(client, name):
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[-1])


def _counted(client, status):
    wanted = f'ixc_requests_total{{endpoint="/score",status="{status}"}} '
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


def _all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_slow_senders_hold_nobody_up_and_are_told_when_their_time_is_over(scorer):
    with serving(scorer, seconds=3.0) as client:
        slow = [_connect(client) for _ in range(30)]
        for connection in slow:
            connection.sendall(_head(len(BODY)) + BODY[:20])
        assert _post(client).status_code == 200  # and not 504
        for connection in slow:
            answer = _all(connection)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"did not arrive within 3 s" in answer
            connection.close()
        assert _counted(client, 408) == 30


def test_who_leaves_before_the_answer_is_not_scored_and_holds_nobody_up(gated):
    with serving(gated, max_requests=4) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(_post, client)
        until(lambda: _gauge(client, "ixc_queue_length") == 1)
        for _ in range(2):  # more in all than may wait at once
            gone = [_connect(client) for _ in range(3)]
            for connection in gone:
                connection.sendall(_head(len(BODY)) + BODY)
            until(lambda: _gauge(client, "ixc_queue_length") == 4)
            assert client.get("/health/ready").json() == {"status": "busy"}
            for connection in gone:
                connection.close()
            until(lambda: _gauge(client, "ixc_queue_length") == 1)
        gated.gate.set()
        assert first.result().status_code == 200
        assert _post(client).status_code == 200
        assert _counted(client, 499) == 6
        assert sum(gated.sizes) == 2


def test_who_leaves_within_the_body_is_forgotten(scorer):
    with serving(scorer) as client:
        connection = _connect(client)
        connection.sendall(_head(len(BODY)) + BODY[:20])
        connection.close()
        until(lambda: _counted(client, 499) == 1)


def test_when_too_many_wait_the_next_is_told_to_come_again(gated):
    with serving(gated, max_requests=2) as client, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(_post, client) for _ in range(2)]
        until(lambda: _gauge(client, "ixc_queue_length") == 2)
        answer = _post(client)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "too many requests wait" in answer.json()["error"]
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        gated.gate.set()
        assert [one.result().status_code for one in waiting] == [200, 200]


def test_an_answer_that_takes_too_long_is_given_up(gated):
    with serving(gated, seconds=0.3) as client:
        answer = _post(client)
        assert (answer.status_code, "no answer within 0.3 s" in answer.json()["error"]) == (504, True)
        assert _gauge(client, "ixc_queue_length") == 0
        gated.gate.set()


def test_bodies_take_no_more_memory_together_than_they_may(gated):
    body = BODY[:-1] + b" " * 400_000 + b"}"
    headers = {"Content-Type": "application/json"}
    with serving(gated, max_held_bytes=1_000_000) as client, ThreadPoolExecutor() as pool:
        held = [pool.submit(client.post, "/score", content=body, headers=headers) for _ in range(2)]
        until(lambda: _gauge(client, "ixc_queue_length") == 2)
        answer = client.post("/score", content=body, headers=headers)
        assert (answer.status_code, "holds too many" in answer.json()["error"]) == (503, True)
        gated.gate.set()
        assert [one.result().status_code for one in held] == [200, 200]
        assert client.post("/score", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(("limits", "status"), [((100, 1000), 413), ((1000, 100), 503)])
def test_a_refused_body_that_has_come_whole_is_answered_at_once(limits, status):
    sent, parts = [], [{"type": "http.request", "body": b" " * 500, "more_body": False}]

    async def receive():
        return parts.pop() if parts else await asyncio.Event().wait()  # the caller waits for the answer

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        pytest.fail("the request was let through")

    own, held = limits
    guard = Guard(app, token="", open_paths=(), max_body_bytes=own, max_held_bytes=held, seconds=SOON)
    start = time.monotonic()
    asyncio.run(guard({"type": "http", "path": "/score", "headers": []}, receive, send))
    assert sent[0]["status"] == status
    assert time.monotonic() - start < SOON / 2
    assert guard.held_bytes == 0


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_beyond_the_limit_is_refused_whether_or_not_its_length_is_told(is_announced, client):
    parts = [b" " * 100_000] * 20
    content = b"".join(parts) if is_announced else iter(parts)
    answer = client.post("/score", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert _post(client).status_code == 200


def test_who_asks_before_sending_is_refused_before_sending(client):
    with _connect(client) as connection:
        connection.sendall(_head(10**12, "Expect: 100-continue"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_who_never_reads_the_answer_holds_nobody_up(client):
    deaf = [_connect(client) for _ in range(20)]
    for connection in deaf:
        connection.sendall((_head(len(BODY)) + BODY) * 3)
    start = time.monotonic()
    assert _post(client).status_code == 200
    assert time.monotonic() - start < SOON
    for connection in deaf:
        connection.close()


def test_what_is_no_http_is_refused(client):
    with _connect(client) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in _all(connection)[:20]
    assert threading.active_count() < 100
