# SPDX-License-Identifier: Apache-2.0
"""Conversations from a program are checked as records are, and each picture finds its place."""

import numpy as np
import pytest

from ixc_lightning.datamodules.conversations import candidates_of, given_candidates, split_conversation
from ixc_lightning.datamodules.media import decode_image
from ixc_lightning.types import InputError, Record


def _picture(value):
    return np.full((4, 4, 3), value, dtype=np.uint8)


def _given(messages, responses=("yes",), **options):
    return given_candidates(messages, list(responses), shard="here", key="7", **options)


def _seen(candidates):
    """Types of the parts of the first turn, a picture by the value of its pixels."""
    record = candidates.record
    return [
        np.asarray(decode_image(record.media[part["file"]], where="x")).flat[0]
        if part["type"] == "image"
        else part["type"]
        for part in candidates.prompt[0]["content"]
    ]


def _user(*content):
    return [{"role": "user", "content": list(content)}]


TEXT = {"type": "text", "text": "which?"}


def test_a_text_alone_is_a_turn_of_the_user_s():
    candidates = _given("which?", ["a", ""])
    assert candidates.prompt == ({"role": "user", "content": [TEXT]},)
    assert candidates.names == ["0", "1"]
    assert candidates.answers[1][0]["content"] == [{"type": "text", "text": ""}]


def test_pictures_without_parts_come_before_the_first_user_s_text():
    turns = [{"role": "system", "content": "be brief"}, *_user(TEXT)]
    candidates = _given(turns, images=[_picture(1), _picture(2)])
    assert [part["type"] for part in candidates.prompt[1]["content"]] == ["image", "image", "text"]
    assert _seen(candidates._replace(prompt=candidates.prompt[1:])) == [1, 2, "text"]


def test_pictures_fill_their_parts_in_order_around_those_that_hold_their_own():
    own = {"type": "image", "image": _picture(9)}
    candidates = _given(
        _user({"type": "image"}, own, TEXT, {"type": "image"}), images=[_picture(1), _picture(2)]
    )
    assert _seen(candidates) == [1, 9, "text", 2]


def test_a_part_may_name_a_path(tmp_path):
    from ixc_lightning.datamodules.given_media import picture_bytes

    (tmp_path / "a.png").write_bytes(picture_bytes(_picture(5), where="x"))
    assert _seen(_given(_user({"type": "image", "path": str(tmp_path / "a.png")}, TEXT))) == [5, "text"]


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        (_user({"type": "image"}, TEXT), {}, "images: there are 0, fewer than parts"),
        (_user({"type": "image"}, TEXT), {"images": [_picture(1)] * 3}, "images: there are 3, 2 more than"),
        (_user(TEXT), {"images": _picture(1)}, "images: must be a list"),
        (_user({"type": "sound"}), {}, r"messages\[0\].content\[0\].type: unknown content type 'sound'"),
        (_user({"type": "image", "image": 3}), {}, r"messages\[0\].content\[0\]: is of type int"),
        (_user({"type": "text", "text": _picture(1)}), {}, "hold a ndarray where text belongs"),
        ([*_user(TEXT), {"role": "assistant", "content": "x"}], {}, "ends with a message of the assistant"),
        ([], {}, "messages: is empty"),
        (7, {}, "messages: must be a list of messages"),
        (["text"], {}, r"messages\[0\]: must be an object"),
        (_user(TEXT), {"responses": []}, "responses: is empty"),
        (_user(TEXT), {"responses": [None]}, r"responses\[0\]: must be a text, not null"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_place_and_field(messages, options, message, unchecked_shapes):
    with pytest.raises(InputError, match=f"^here.*7.*{message}"):
        _given(messages, **options)


def test_a_conversation_is_split_before_the_assistant_s_last_turn():
    turns = [*_user(TEXT), {"role": "assistant", "content": [TEXT, TEXT]}]
    assert split_conversation(turns, shard="s", key="k") == (turns[:-1], "which?which?")


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("text", "must be a list of messages"),
        ([], "must be a list of messages"),
        (_user(TEXT), "must end with a message of the assistant"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "media inside a response"),
        ([{"role": "assistant", "content": None}], "must be a text, not null"),
    ],
)
def test_a_conversation_without_a_response_is_refused(conversation, message):
    with pytest.raises(InputError, match=message):
        split_conversation(conversation, shard="s", key="k")


def test_a_pair_has_two_candidates_and_an_instruction_its_last_turn():
    turns = ({"role": "user", "content": [TEXT]}, {"role": "assistant", "content": [TEXT]})
    pair = Record("k", "s", "x", "y", turns[:1], chosen=turns[1:], rejected=turns[1:])
    assert candidates_of(pair) == (pair, turns[:1], ["chosen", "rejected"], [turns[1:]] * 2)
    single = Record("k", "s", "x", "y", turns)
    assert candidates_of(single) == (single, turns[:1], ["response"], [turns[1:]])
