# SPDX-License-Identifier: Apache-2.0
"""From the ways in which public sets write a conversation to messages, and from two of them to a pair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ixc_lightning.datamodules.sources._drafts import Dropped, Turn
from ixc_lightning.datamodules.sources._reading import Row

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatgpt", "model"), "assistant"),
}
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
MEDIA_PART = {"image": "<image>", "video": "<video>"}


class Pair(NamedTuple):
    """What two conversations share, and how each goes on."""

    messages: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]


def read_turns(value: Any, row: Row, field: str) -> list[Turn]:
    """Return the messages of a conversation as text; parts of media become ``<image>`` and ``<video>``.

    Args:
        value: a list of ``{role, content}``, ``{from, value}`` or ``{user, assistant}``; content is a string
            or a list of parts.
        row: for messages.
        field: name of the field, for messages.

    Raises:
        InputError: naming row, field and place, if it is no such list.
    """
    if not isinstance(value, list) or not value:
        raise row.error(field, "must be a list of at least one message")
    turns: list[Turn] = []
    for number, item in enumerate(value):
        place = f"{field}[{number}]"
        if not isinstance(item, dict):
            raise row.error(place, f"must be an object, not {type(item).__name__}")
        if "user" in item and "assistant" in item:
            turns += [Turn(role, (_content(item[role], row, place),)) for role in ("user", "assistant")]
            continue
        speaker = item.get("role", item.get("from"))
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise row.error(place, f"its role or from is {speaker!r}, none of {', '.join(ROLES)}")
        content = _content(item.get("content", item.get("value")), row, place)
        turns.append(Turn(ROLES[speaker], (content,)))
    return turns


def _content(value: Any, row: Row, place: str) -> str:
    if isinstance(value, str):
        return value
    texts = []
    for part in value if isinstance(value, list) else [None]:
        fields = part if isinstance(part, dict) else {}
        kind, text = fields.get("type"), fields.get("text")
        if kind == "text" and isinstance(text, str):
            texts.append(text)
        elif isinstance(kind, str) and kind in MEDIA_PART:
            texts.append(MEDIA_PART[kind])
        else:
            raise row.error(place, "its content or value must be a string, or parts of text, image or video")
    return "".join(texts)


def read_transcript(text: str) -> list[Turn]:
    r"""Return the messages of a transcript ``\n\nHuman: …\n\nAssistant: …``.

    Raises:
        Dropped: if something stands before the first speaker.
    """
    start, *rest = SPEAKER.split(text)
    if start.strip() or not rest:
        raise Dropped("the transcript does not start with a speaker")
    return [Turn(SPEAKERS[rest[i]], (rest[i + 1].strip(),)) for i in range(0, len(rest), 2)]


def shared_prefix(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> Pair:
    """Return the longest common start that ends with the user, and how the two conversations go on.

    Raises:
        Dropped: if they share no message of the user, or one does not end with the assistant.
    """
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Dropped("a conversation does not end with the assistant")
    shared = 0
    for number, (left, right) in enumerate(zip(chosen, rejected, strict=False), start=1):
        if left != right:
            break
        if left.role == "user":
            shared = number
    if not shared or shared in (len(chosen), len(rejected)):
        raise Dropped("the conversations share no prompt")
    return Pair(list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:]))


def read_pair(row: Row) -> Pair:
    """Return the pair of a row whose ``chosen`` and ``rejected`` are whole conversations.

    Raises:
        Dropped: if they differ before the last response, or one does not end with the assistant.
    """
    turns = (read_turns(row.require(name), row, name) for name in ("chosen", "rejected"))
    return single_response(shared_prefix(*turns))


def single_response(pair: Pair) -> Pair:
    """Return a pair whose responses are one message each.

    Raises:
        Dropped: if the conversations differ before their last message.
    """
    if len(pair.chosen) != 1 or len(pair.rejected) != 1:
        raise Dropped("the conversations differ before the last response")
    return pair
