# SPDX-License-Identifier: Apache-2.0
"""A model's verdict counts if it names the same response in both orders, and is asked for once."""

import base64
import io
import time
from collections import Counter

import pytest
from PIL import Image

from ixc_lightning.rollout import ChatClient, Judge, Limits, PairwiseJudge, judge_client
from ixc_lightning.rollout.judge import Contest
from ixc_lightning.rollout.judge_prompt import VERSION
from ixc_lightning.types import InputError
from tests.rollout.judge_server import KEY, Fault, JudgeServer, serving

TOKENS = 410  # of a request and its reply; what is guessed from the letters is less
SPENT = "comparisons: not judged, the limits are reached"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with serving(JudgeServer()) as server:
        yield server


@pytest.fixture
def judge(server, tmp_path):
    """Makes judges that ask the server, with one cache for all."""

    def build(*, limits=None, tries=8, timeout=5.0, max_tokens=10, **options):
        client = ChatClient(
            "judge-1", server.url, limits=limits, tries=tries, timeout=timeout, max_tokens=max_tokens
        )
        return PairwiseJudge(client, cache=str(tmp_path / "judgments"), **options)

    return build


def _contest(responses, *, n=0, reference=None, pictures=()):
    parts = [{"type": "text", "text": f"question {n}"}, *pictures]
    turns = [{"role": "user", "content": parts}]
    return Contest(f"set:{n}", responses, [None] * len(responses), reference, f"0/{n}", lambda: turns)


def _decide(judge, *contests):
    return list(judge.decide(iter(contests)))


def test_the_better_response_is_preferred_wherever_it_stood(judge, server):
    asked = judge()
    assert isinstance(asked, Judge)
    first, second = _decide(asked, _contest(["good", "bad"]), _contest(["bad", "good"], n=1))
    assert first.preferences == [(0, 1, 1.0)]
    assert second.preferences == [(1, 0, 1.0)]
    assert sorted(server.texts) == [("bad", "good")] * 2 + [("good", "bad")] * 2
    assert first.counts == {"comparisons": 1, "comparisons agreed": 1}
    assert not first.left_out


def test_both_verdicts_are_told_as_evidence(judge):
    (ruling,) = _decide(judge(), _contest(["bad", "good"]))
    verdicts = ruling.evidence[1, 0]["verdicts"]
    assert [(one["chosen_stood"], one["verdict"]) for one in verdicts] == [("b", "b"), ("a", "a")]
    assert {(one["judge"], one["prompt"]) for one in verdicts} == {("judge-1-2025-01-21", VERSION)}
    assert len({one["judgment"] for one in verdicts}) == 2


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (lambda asked: {"content": "Verdict: A"}, "comparisons: disagreement"),  # always the first
        (lambda asked: {"content": "Verdict: tie"}, "comparisons: tie"),
        (
            lambda asked: {"content": "Verdict: tie" if asked.a == "x" else "Verdict: A"},
            "comparisons: disagreement",
        ),
        (lambda asked: {"content": None, "refusal": "No."}, "comparisons: refusal"),
        (lambda asked: {"content": "Both are nice."}, "comparisons: unparseable"),
        (
            lambda asked: {"content": "Verdict: A" if asked.a == "x" else "who knows"},
            "comparisons: unparseable",
        ),
        (lambda asked: {"content": "Verd", "finish_reason": "length"}, "comparisons: unparseable"),
    ],
)
def test_everything_but_agreement_is_counted_and_prefers_nothing(judge, server, rule, reason):
    server.rule = rule
    (ruling,) = _decide(judge(), _contest(["x", "y"]))
    assert ruling.preferences == []
    assert ruling.left_out == {reason: 1}
    assert ruling.counts == {"comparisons": 1}


def test_the_server_sees_the_pictures_of_the_prompt(judge, server):
    stream = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(stream, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    _decide(judge(), _contest(["good", "bad"], pictures=[picture, picture]))
    assert [asked.pictures for asked in server.asked] == [[("image/jpeg", (9, 5))] * 2] * 2


def test_a_reference_is_compared_with_each_sample_that_says_something_else(judge, server):
    ruling, other = _decide(
        judge(),
        _contest(["x", "y", "good", "y", "good"], reference=2),
        _contest(["same", "same"], n=1, reference=1),
    )
    assert {frozenset(texts) for texts in server.texts} == {
        frozenset(["x", "good"]),
        frozenset(["y", "good"]),
    }
    assert ruling.preferences == [(2, 0, 1.0), (2, 1, 1.0)]
    assert other.left_out == {"no two different responses": 1}


def test_no_more_is_compared_than_wanted(judge, server):
    ruling, *_ = _decide(judge(comparisons=3), _contest([f"r{n}" for n in range(6)]))
    assert ruling.counts["comparisons"] == 3
    assert len(server.asked) == 6


def test_nothing_is_asked_twice_in_one_run_or_in_two(judge, server):
    same = [_contest(["good", "bad"]), _contest(["good", "bad"])]
    first = judge()
    before = _decide(first, *same)
    assert len(server.asked) == 2
    again = judge()
    assert _decide(again, *same) == before
    assert len(server.asked) == 2
    assert (again.client.requests, again.from_cache) == (0, 2)
    assert again.client.meter.input_tokens == first.client.meter.input_tokens == 100


def test_other_criteria_another_model_or_other_settings_are_asked_anew(judge, server):
    contest = _contest(["good", "bad"])
    for options in ({}, {"criteria": "Short."}, {"max_tokens": 11}):
        _decide(judge(**options), contest)
    assert len(server.asked) == 6


def test_rulings_come_in_order_though_replies_do_not(judge, server):
    def slow_first(asked):
        time.sleep(0.3 if "question 0" in asked.text else 0)
        return {"content": "Verdict: A" if "good" in asked.a else "Verdict: B"}

    server.rule = slow_first
    contests = [_contest(["good", "bad"] if n % 2 else ["bad", "good"], n=n) for n in range(20)]
    rulings = _decide(judge(limits=Limits(concurrency=4)), *contests)
    assert [ruling.preferences[0].chosen for ruling in rulings] == [1, 0] * 10
    assert 1 < server.most_under_way <= 4


def test_few_prompts_are_read_ahead(judge):
    read = []

    def contests():
        for n in range(50):
            read.append(n)
            yield _contest(["good", "bad"], n=n)

    asked = judge(limits=Limits(concurrency=2))
    rulings = asked.decide(contests())
    next(rulings)
    assert len(read) == 5
    rulings.close()


def test_what_the_limits_leave_unjudged_is_judged_by_a_later_run_with_higher_ones(judge, server):
    server.usage = {"prompt_tokens": 400, "completion_tokens": 10, "total_tokens": TOKENS}
    contests = [_contest(["good", "bad"], n=n) for n in range(4)]
    few = Limits(concurrency=1, total_tokens=5 * TOKENS)
    counts = sum((one.left_out for one in _decide(judge(limits=few), *contests)), Counter())
    assert counts == {SPENT: 2}
    assert len(server.asked) == 5
    rulings = _decide(judge(limits=few), *contests)  # the same limits: what was paid is spent
    assert sum((one.left_out for one in rulings), Counter()) == {SPENT: 2}
    assert len(server.asked) == 5
    rulings = _decide(judge(), *contests)
    assert all(one.preferences == [(0, 1, 1.0)] for one in rulings)
    assert len(server.asked) == 8


def test_a_run_that_a_fault_ended_goes_on_where_it_was(judge, server):
    contests = [_contest(["good", "bad"], n=n) for n in range(6)]
    stopping = judge(limits=Limits(concurrency=1), tries=2)
    rulings = stopping.decide(iter(contests))
    next(rulings)
    server.faults.extend([Fault(500)] * 2)
    with pytest.raises(InputError, match="2 tries in a row failed"):
        list(rulings)
    paid = len(server.asked)
    assert 2 <= paid < 12
    assert all(one.preferences for one in _decide(judge(), *contests))
    assert len(server.asked) == 12  # what was paid was not asked again
    assert len({(asked.text, asked.a) for asked in server.asked}) == 12


def test_requests_that_the_server_cannot_take_are_counted_until_they_are_too_many(judge, server):
    server.faults.append(Fault(400))
    first, second = _decide(
        judge(limits=Limits(concurrency=1)), *(_contest(["good", "bad"], n=n) for n in range(2))
    )
    assert first.left_out == {"comparisons: failed": 1}
    assert second.preferences == [(0, 1, 1.0)]
    server.faults.extend([Fault(422)] * 3)
    with pytest.raises(InputError, match=r"took 2 requests for bad ones.*fault 422"):
        _decide(
            judge(limits=Limits(concurrency=1), max_failures=1),
            *(_contest(["a", "b"], n=n) for n in range(9)),
        )


def test_faults_that_pass_change_no_ruling(judge, server):
    server.faults.extend([Fault(429), Fault(500), Fault(0), Fault(200, body=b"{")] * 3)
    contests = [_contest(["bad", "good"], n=n) for n in range(8)]
    asked = judge(limits=Limits(concurrency=3))
    rulings = _decide(asked, *contests)
    assert all(one.preferences == [(1, 0, 1.0)] for one in rulings)
    assert (len(server.asked), asked.client.requests, asked.client.retries) == (16, 28, 12)


def test_the_summary_says_what_it_took_and_holds_no_key(judge):
    asked = judge(limits=Limits(input_price=2.0, output_price=10.0))
    _decide(asked, _contest(["good", "bad"]))
    summary = asked.summary()
    assert summary["cost"] == pytest.approx(2 * 200 / 1e6)
    assert {name: summary[name] for name in ("model", "prompt", "requests", "retries", "input_tokens")} == {
        "model": "judge-1",
        "prompt": VERSION,
        "requests": 2,
        "retries": 0,
        "input_tokens": 100,
    }
    assert KEY not in str(summary)


@pytest.mark.parametrize("options", [{"comparisons": 0}, {"max_failures": -1}])
def test_settings_out_of_their_range_are_refused(judge, options):
    with pytest.raises(InputError, match=r"judge\.comparisons"):
        judge(**options)
