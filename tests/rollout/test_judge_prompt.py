# SPDX-License-Identifier: Apache-2.0
"""The judge is shown everything that it needs, and its verdict is read only where it gives one."""

import pytest

from ixc_lightning.rollout.judge_prompt import CRITERIA, comparison_messages, parse_verdict

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def _text(text):
    return {"type": "text", "text": text}


def test_turns_pictures_and_responses_stand_in_their_order():
    conversation = [
        {"role": "system", "content": [_text("Be kind.")]},
        {"role": "user", "content": [_text("First "), PICTURE, _text("?")]},
        {"role": "assistant", "content": [_text("A cat.")]},
        {"role": "user", "content": [PICTURE, PICTURE]},
    ]
    system, user = comparison_messages(conversation, "one", "two")
    assert (system["role"], user["role"]) == ("system", "user")
    assert CRITERIA in system["content"]
    assert user["content"] == [
        _text("=== message of the system ===\nBe kind.\n=== message of the user ===\nFirst "),
        PICTURE,
        _text("?\n=== message of the assistant ===\nA cat.\n=== message of the user ===\n"),
        PICTURE,
        PICTURE,
        _text("\n=== response A ===\none\n=== response B ===\ntwo\n=== end ===\nWhich is better?"),
    ]


def test_criteria_of_one_s_own_take_the_place_of_the_usual_ones():
    system, _ = comparison_messages([], "one", "two", criteria="The shorter one.")
    assert "The shorter one." in system["content"]
    assert CRITERIA not in system["content"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Both are fine.\n\nVerdict: A", "a"),
        ("verdict: b.", "b"),
        ("**Verdict:** tie\n", "tie"),
        ("**Verdict: [[B]]**", "b"),
        ("Verdict: Response A", "a"),
        ("<think>Verdict: A\nwait</think>\nVerdict: B", "b"),  # the last one counts
        (" B ", "b"),
        ("Tie.", "tie"),
        ("Verdict: A is better", None),
        ("Verdict: A or B", None),
        ("Verdict: C", None),
        ("A is better than B.", None),
        ("I cannot help with that.", None),
        ("", None),
        ("Verdict:", None),
        ("Verdict: Apple", None),
    ],
)
def test_a_verdict_is_a_line_that_says_nothing_else(text, verdict):
    assert parse_verdict(text) == verdict
