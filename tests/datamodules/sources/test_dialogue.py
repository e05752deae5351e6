# SPDX-License-Identifier: Apache-2.0
"""Conversations: every way to write one, and what two of them share."""

import pytest

from ixc_lightning.datamodules.sources._dialogue import (
    Pair,
    read_transcript,
    read_turns,
    shared_prefix,
    single_response,
)
from ixc_lightning.datamodules.sources._drafts import Dropped, Turn, assistant, user
from ixc_lightning.datamodules.sources._reading import Row
from ixc_lightning.types import InputError

ROW = Row({}, "data.jsonl", 3)
Q1, A1, Q2, A2, A3 = user("q1"), assistant("a1"), user("q2"), assistant("a2"), assistant("a3")


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}],
        [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}],
        [{"from": "human", "value": "q1"}, {"from": "bot", "value": "a1"}],
        [{"user": "q1", "assistant": "a1", "source": "somewhere"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "q1"}]},
            {"role": "assistant", "content": "a1"},
        ],
    ],
)
def test_every_way_to_write_a_conversation_gives_the_same_messages(value):
    assert read_turns(value, ROW, "messages") == [Q1, A1]


def test_parts_of_media_become_places_in_the_text():
    content = [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}, {"type": "video"}]
    assert read_turns([{"role": "user", "content": content}], ROW, "m") == [user("<image>Which?<video>")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("q1", "messages: must be a list of at least one message"),
        ([], "messages: must be a list of at least one message"),
        (["q1"], r"messages\[0\]: must be an object, not str"),
        (
            [{"role": "tool", "content": "x"}],
            r"messages\[0\]: its role or from is 'tool', none of system, user",
        ),
        ([{"role": "user"}], r"messages\[0\]: its content or value must be a string"),
        ([{"role": "user", "content": [{"type": "audio"}]}], r"messages\[0\]: its content or value must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]: its content or value must be"),
    ],
)
def test_what_is_no_conversation_is_named(value, message):
    with pytest.raises(InputError, match=f"data.jsonl, row 3, {message}"):
        read_turns(value, ROW, "messages")


def test_a_transcript_is_split_at_its_speakers_alone():
    text = "\n\nHuman: q1 Human: no\n\nAssistant: a1\n\nmore\n\nHuman: q2\n\nAssistant:"
    assert read_transcript(text) == [user("q1 Human: no"), assistant("a1\n\nmore"), Q2, assistant("")]


@pytest.mark.parametrize("text", ["", "no speaker", "first\n\nHuman: q1"])
def test_a_transcript_that_does_not_start_with_a_speaker_is_dropped(text):
    with pytest.raises(Dropped, match="does not start with a speaker"):
        read_transcript(text)


def test_the_prompt_is_what_both_share_up_to_a_message_of_the_user():
    assert shared_prefix([Q1, A1, Q2, A2], [Q1, A1, Q2, A3]) == Pair([Q1, A1, Q2], [A2], [A3])
    assert shared_prefix([Q1, A2, Q2, A1], [Q1, A3, Q2, A1]) == Pair([Q1], [A2, Q2, A1], [A3, Q2, A1])
    system = Turn("system", ("be brief",))
    assert shared_prefix([system, Q1, A1], [system, Q1, A2]).messages == [system, Q1]


def test_one_shared_message_too_many_is_not_taken_for_the_prompt():
    assert shared_prefix([Q1, A1], [Q1, A1]) == Pair([Q1], [A1], [A1])
    assert shared_prefix([Q1, A1], [Q1, A1, Q2, A2]) == Pair([Q1], [A1], [A1, Q2, A2])


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([Q1, A1], [Q2, A2], "share no prompt"),
        ([A1], [A2], "share no prompt"),
        ([Q1, A1, Q2], [Q1, A2], "does not end with the assistant"),
    ],
)
def test_conversations_that_are_no_pair_are_dropped(chosen, rejected, reason):
    with pytest.raises(Dropped, match=reason):
        shared_prefix(chosen, rejected)


def test_longer_responses_are_dropped_where_a_set_has_single_ones():
    with pytest.raises(Dropped, match="differ before the last response"):
        single_response(Pair([Q1], [A1, Q2, A2], [A3]))
