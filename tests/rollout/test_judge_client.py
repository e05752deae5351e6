# SPDX-License-Identifier: Apache-2.0
"""The client gets a reply from a server that fails in every way but for good, and says what else is wrong."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from ixc_lightning.rollout import ChatClient, Limits, judge_client
from ixc_lightning.rollout.judge_client import UnanswerableError
from ixc_lightning.rollout.judge_replies import Reply
from ixc_lightning.types import InputError
from tests.rollout.judge_server import KEY, Fault, JudgeServer, serving

QUESTION = "=== response A ===\ngood\n=== response B ===\nx\n=== end ==="
MESSAGES = [
    {"role": "system", "content": "Judge."},
    {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
]
REPLY = Reply("Response A says 'good'.\n\nVerdict: A", "", "stop", "judge-1-2025-01-21", 50, 10)
SLACK = 0.05  # seconds; timers may be early by their resolution


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture
def server():
    with serving(JudgeServer()) as server:
        yield server


@pytest.fixture
def client(server, request):
    """Makes clients of the server; none outlives the test."""

    def build(**options):
        made = ChatClient("judge-1", **{"base_url": server.url, "api_key_variable": "JUDGE_KEY", **options})
        request.addfinalizer(made.close)
        return made

    return build


def test_a_reply_comes_with_its_model_and_its_tokens(client, server):
    asking = client()
    assert asking.ask(MESSAGES) == REPLY
    assert (asking.meter.input_tokens, asking.meter.output_tokens, asking.requests) == (50, 10, 1)


def test_settings_and_further_fields_arrive_as_they_are(client, server):
    options = {"max_tokens": 7, "max_tokens_field": "max_completion_tokens", "temperature": None}
    client(extra={"reasoning_effort": "low"}, **options).ask(MESSAGES)
    client(temperature=0.5).ask(MESSAGES)
    first, second = (asked.body for asked in server.asked)
    assert {name: value for name, value in first.items() if name != "messages"} == {
        "model": "judge-1",
        "max_completion_tokens": 7,
        "reasoning_effort": "low",
    }
    assert (second["temperature"], second["max_tokens"]) == (0.5, 1024)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500),
        Fault(503),
        Fault(429),
        Fault(408),
        Fault(0),  # the connection breaks
        Fault(200, delay=1.0),  # longer than the timeout
        Fault(200, body=b'{"choices": [{"mess'),
        Fault(200, body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
        Fault(200, body=b'{"error": {"message": "overloaded"}}'),
        Fault(200, body=b"[]"),
        Fault(200, body=b'{"choices": []}'),
        Fault(200, body=b'{"choices": [{"message": null, "finish_reason": "stop"}]}'),
        Fault(502, body=b"<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
    ],
    ids=lambda fault: f"{fault.status}-{(fault.body or b'')[:12].decode()}-{fault.delay:g}",
)
def test_what_may_pass_is_tried_again(client, server, fault):
    server.faults.extend([fault, fault])
    asking = client(timeout=0.5)
    assert asking.ask(MESSAGES) == REPLY
    assert (asking.requests, asking.retries) == (3, 2)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_nothing_is_asked_before_retry_after(client, server, form):
    seconds = 1 if form == "seconds" else 2  # a date has whole seconds: it may be up to one earlier
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    server.faults.append(Fault(429, headers={"Retry-After": str(seconds) if form == "seconds" else date}))
    begun = time.monotonic()
    assert client().ask(MESSAGES) == REPLY
    assert server.asked[0].at - begun > 1 - SLACK


def test_a_server_that_asks_for_more_patience_than_a_run_has_ends_it(client, server):
    server.faults.append(Fault(429, headers={"Retry-After": "86400"}))
    with pytest.raises(InputError, match=r"asks to wait for 86,400 seconds; run again then"):
        client().ask(MESSAGES)


def test_after_the_last_try_the_run_ends_with_the_reason(client, server):
    server.faults.extend([Fault(500)] * 3)
    asking = client(tries=3)
    with pytest.raises(InputError, match=r"3 tries in a row failed.*fault 500.*Run again"):
        asking.ask(MESSAGES)
    assert asking.requests == 3
    assert asking.ask(MESSAGES) == REPLY  # what failed holds no place


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1"])
def test_a_server_that_is_not_there_is_named(client, url):
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/v1: 2 tries in a row failed.*connection failed"):
        client(base_url=url, tries=2).ask(MESSAGES)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(401), "refuses the key"),
        (Fault(403), "refuses the key"),
        (Fault(404), "does not know the address or the model 'judge-1'"),
        (Fault(429, code="insufficient_quota"), "pay in, and run again"),
    ],
)
def test_what_will_not_pass_ends_the_run_at_once(client, server, fault, message):
    server.faults.append(fault)
    asking = client()
    with pytest.raises(InputError, match=message):
        asking.ask(MESSAGES)
    assert asking.requests == 1


def test_a_key_that_a_server_repeats_is_not_shown(client, server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-another")
    with pytest.raises(InputError, match="refuses the key") as caught:
        client().ask(MESSAGES)
    assert "sk-another" not in str(caught.value)
    assert "wrong key Bearer …" in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_cannot_take_is_told_from_one_that_failed(client, server, status):
    server.faults.append(Fault(status))
    asking = client()
    with pytest.raises(UnanswerableError, match=f"{status}: .*fault {status}"):
        asking.ask(MESSAGES)
    assert asking.requests == 1


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "refusal": "I will not judge that."},
        {"content": "", "finish_reason": "content_filter"},
        {"content": "Verdict: A", "finish_reason": "content_filter"},
    ],
)
def test_a_refusal_is_no_text(client, server, message):
    server.rule = lambda asked: dict(message)
    reply = client().ask(MESSAGES)
    assert reply.text == ""
    assert reply.refusal


def test_a_content_filter_of_the_request_is_a_refusal(client, server):
    server.faults.append(Fault(400, code="content_filter"))
    assert "fault 400" in client().ask(MESSAGES).refusal


def test_a_server_that_tells_no_tokens_is_given_a_guess(client, server):
    server.rule = lambda asked: {"content": "x" * 30, "usage": None}
    reply = client().ask(MESSAGES)
    letters = len(MESSAGES[0]["content"]) + len(MESSAGES[1]["content"][0]["text"])
    assert (reply.input_tokens, reply.output_tokens) == (letters // 3, 10)


def test_the_totals_are_never_passed(client, server):
    asking = client(limits=Limits(total_tokens=200), max_tokens=10)
    replies = [asking.ask(MESSAGES) for _ in range(5)]
    assert replies == [REPLY] * 3 + [None] * 2  # 60 tokens each; a fourth would make 240
    assert len(server.asked) == 3


def test_money_is_counted_by_the_prices(client, server):
    limits = Limits(total_cost=0.0008, input_price=2.0, output_price=10.0)  # 50·2 + 10·10 = 200 of a million
    asking = client(limits=limits, max_tokens=10)
    assert [asking.ask(MESSAGES) for _ in range(6)] == [REPLY] * 4 + [None] * 2
    assert asking.meter.cost == pytest.approx(0.0008)


def test_a_missing_key_is_named_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(InputError, match="the environment has no JUDGE_KEY"):
        ChatClient("judge-1", api_key_variable="JUDGE_KEY")


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"tries": 0}, {"timeout": 0.0}])
def test_settings_out_of_their_range_are_refused(client, server, options):
    with pytest.raises(InputError, match="must be positive"):
        client(**options)


def test_a_missing_package_is_named(client, server, monkeypatch):
    monkeypatch.setattr(judge_client, "find_spec", lambda name: None if name == "openai" else name)
    with pytest.raises(InputError, match=r"a judge needs openai: pip install 'ixc-lightning\[judge\]'"):
        client()


def test_what_a_url_holds_of_a_password_is_not_in_the_name_of_the_server(client):
    asking = client(base_url="http://me:secret@127.0.0.1:9/v1")
    assert asking.server == "http://127.0.0.1:9/v1"
