# SPDX-License-Identifier: Apache-2.0
"""Drafts: media where their placeholders stand, what no record can be made of, and names of layouts."""

import pytest

from ixc_lightning.datamodules.sources._drafts import (
    Draft,
    Turn,
    assistant,
    layout,
    place_media,
    refusal,
    render,
    user,
)
from ixc_lightning.datamodules.sources._media import Medium
from ixc_lightning.datamodules.sources._reading import Row
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import said

ROW = Row({}, "data.jsonl", 3)
JPG, PNG, MP4 = Medium("image", "jpg", b"j"), Medium("image", "png", b"p"), Medium("video", "mp4", b"m")


@pytest.mark.parametrize(
    ("text", "media", "parts"),
    [
        ("Which?", [], ("Which?",)),
        ("Which?", [JPG], (JPG, "Which?")),
        ("Which?", [JPG, PNG], (JPG, PNG, "Which?")),
        ("<image>\nWhich?", [JPG], (JPG, "Which?")),
        ("Which?\n<image>", [JPG], ("Which?", JPG)),
        ("<image>\n<image>\nWhich?\n", [JPG, PNG], (JPG, PNG, "Which?\n")),
        ("A <image>\nB <image> which?", [JPG, PNG], ("A ", JPG, "\nB ", PNG, " which?")),
        ("<video>\nWhat happens?", [MP4], (MP4, "What happens?")),
        ("\nWhich?\n", [], ("\nWhich?\n",)),
    ],
)
def test_media_stand_where_their_placeholders_are_or_first(text, media, parts):
    assert place_media([user(text)], media, ROW) == [user(*parts)]


def test_media_go_to_the_first_user_message_or_to_those_that_have_places():
    turns = [Turn("system", ("Be brief.",)), user("One?"), assistant("<image> is a tag"), user("Two?")]
    assert place_media(turns, [JPG], ROW) == [turns[0], user(JPG, "One?"), turns[2], turns[3]]
    turns = [user("<image>One?"), assistant("1"), user("Two <image>?")]
    assert place_media(turns, [JPG, PNG], ROW) == [user(JPG, "One?"), turns[1], user("Two ", PNG, "?")]


@pytest.mark.parametrize(
    ("text", "media"), [("<image> <image>", [JPG]), ("<image>", [JPG, PNG]), ("<image>", [])]
)
def test_more_or_fewer_media_than_places_is_an_error(text, media):
    with pytest.raises(
        InputError, match=rf"row 3, media: the row gives {len(media)}, but its text has places"
    ):
        place_media([user(text)], media, ROW)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason"),
    [
        ("Q", "a", "b", None),
        (" ", "a", "b", "a message of the prompt is empty"),
        ("Q", "a", " \n", "a response is empty"),
        ("Q", "", "b", "a response is empty"),
        ("Q", "a", " a\n", "the responses are equal"),
        ("Q", None, None, None),
    ],
)
def test_pairs_without_meaning_are_refused(prompt, chosen, rejected, reason):
    pair = [None if text is None else [assistant(text)] for text in (chosen, rejected)]
    assert refusal(Draft("1", "x", [user(prompt)], *pair)) == reason


def test_a_picture_alone_is_a_prompt():
    assert refusal(Draft("1", "x", [user(JPG)], [assistant("a")], [assistant("b")])) is None


def test_a_record_numbers_its_media_in_order_and_keeps_their_bytes():
    draft = Draft("1", "reading", [user("A ", JPG, "B ", PNG)], [assistant("a")], [assistant("b")], answer=4)
    record, media = render(draft, "some-set")
    assert record == {
        "id": "1",
        "source": "some-set",
        "domain": "reading",
        "messages": [said("user", "A ", ("image", "00.jpg"), "B ", ("image", "01.png"))],
        "chosen": [said("assistant", "a")],
        "rejected": [said("assistant", "b")],
        "answer": 4,
    }
    assert media == {"00.jpg": b"j", "01.png": b"p"}


@pytest.mark.parametrize(
    ("media", "name"),
    [
        ([], "text"),
        ([JPG], "image-jpg"),
        ([JPG, JPG], "images-jpg2"),
        ([JPG, JPG, PNG, JPG], "images-jpg2-png1-jpg1"),
        ([MP4], "video-mp4"),
        ([MP4, JPG], "video-mp41-jpg1"),
    ],
)
def test_a_layout_is_named_by_the_members(media, name):
    assert layout(Draft("1", "x", [user(*media, "Q")])) == name
