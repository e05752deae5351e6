# SPDX-License-Identifier: Apache-2.0
"""From the bytes of one WebDataset sample to a validated record.

This is the boundary: whatever is wrong with a record is found here, said once in a message that names shard,
key and field, and never checked again. Strings become lists of content parts on the way, so that later code
meets one form only.

    {"id": str, "source": str, "domain": str,
     "messages": [{"role": "user", "content": [{"type": "image", "file": "00.jpg"},
                                               {"type": "text", "text": "…"}]}, …],
     "chosen": str | messages, "rejected": str | messages, "margin": float?, "answer": any?}
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from ixc_lightning.datamodules.record_checks import (
    Place,
    check_names,
    check_text,
    json_type,
    load_json,
    require,
    require_text,
    shortened,
    suggest,
)
from ixc_lightning.types import Record

FIELDS = ("id", "source", "domain", "messages", "chosen", "rejected", "margin", "answer")
"""Every field that the JSON of a record may have."""
PART_FIELDS = {"text": "text", "image": "file", "video": "file"}
"""The content types, and the field that each has beside ``type``."""
MAX_DEPTH = 32
"""Levels of lists and objects within ``answer``."""
PLACEHOLDER = re.compile(
    r"<ImageHere>|<IMG_CONTEXT>|<image-placeholder>|<(?:image|video)_soft_token>"
    r"|<\|(?:image|video|image_pad|video_pad|vision_start|vision_end)\|>"
)
"""What model families and data sets write in the place of a picture."""
LONE_TAG = re.compile(r"^[ \t]*<(image|video)>[ \t]*$", re.MULTILINE)
"""The same, where it is no markup: the tag stands alone, and nothing closes it."""
ROLES = ("system", "user", "assistant")
Messages = tuple[dict[str, Any], ...]


class Kind(StrEnum):
    """What a record is for, and so what it must have."""

    PREFERENCE = "preference"
    INSTRUCTION = "instruction"
    PROMPT = "prompt"


def parse_record(data: bytes, media: Mapping[str, bytes], *, kind: Kind, shard: str, key: str) -> Record:
    """Return the validated record of one sample.

    Args:
        data: bytes of the sample's ``json`` member.
        media: bytes of the sample's other members, by file name (the member name without the key).
        kind: which kind of record is expected.
        shard: path of the tar that holds the sample, for messages.
        key: WebDataset key of the sample, for messages.

    Raises:
        InputError: naming shard, key and field, if anything about the sample is not as the contract says.
    """
    place = Place(shard, key)
    raw = load_json(data, place, FIELDS)
    for name in ("id", "source", "domain"):
        require_text(raw, name, name, place)
    messages = _conversation(raw, kind, place)
    _check_media(messages, media, place)
    chosen, rejected = _pair(raw, kind, place)
    return Record(
        key=key,
        shard=shard,
        source=raw["source"],
        domain=raw["domain"],
        messages=messages,
        chosen=chosen,
        rejected=rejected,
        margin=_margin(raw, kind, place),
        answer=_answer(raw, place),
        media=dict(media),
    )


def _conversation(raw: dict[str, Any], kind: Kind, place: Place) -> Messages:
    messages = _messages(require(raw, "messages", "messages", place), "messages", place)
    start = 1 if messages[0]["role"] == "system" else 0
    _check_turns(messages[start:], "user", "messages", place, offset=start)
    last, role = messages[-1]["role"], "assistant" if kind is Kind.INSTRUCTION else "user"
    if last != role:
        problem = f"ends with a message of the {last}, but the shard is read as {kind.value} data"
        raise place.error("messages", f"{problem}, which ends with the {role}; change the record or the kind")
    return messages


def _pair(raw: dict[str, Any], kind: Kind, place: Place) -> tuple[Messages | None, Messages | None]:
    if kind is not Kind.PREFERENCE:
        for name in ("chosen", "rejected", "margin"):
            if raw.get(name) is not None:
                raise place.error(
                    name, f"only preference records have it, and the shard is read as {kind.value} data"
                )
        return None, None
    chosen, rejected = (
        _response(require(raw, name, name, place), name, place) for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise place.error("rejected", "is equal to chosen, so the pair says nothing; drop the record")
    return chosen, rejected


def _response(value: Any, field: str, place: Place) -> Messages:
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    messages = _messages(messages, field, place, expected="a string or a list of messages")
    _check_turns(messages, "assistant", field, place)
    if messages[-1]["role"] != "assistant":
        raise place.error(field, "must end with a message of the assistant")
    if any(part["type"] != "text" for message in messages for part in message["content"]):
        raise place.error(field, "media inside a response are not supported; move them to messages")
    return messages


def _messages(value: Any, field: str, place: Place, expected: str = "a list of messages") -> Messages:
    if not isinstance(value, list):
        raise place.error(field, f"must be {expected}, not {json_type(value)}")
    if not value:
        raise place.error(field, "is empty; a record has at least one message")
    return tuple(_message(item, f"{field}[{index}]", place) for index, item in enumerate(value))


def _message(value: Any, field: str, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.error(field, f"must be an object with role and content, not {json_type(value)}")
    check_names(value, ("role", "content"), field, place)
    role = require_text(value, "role", f"{field}.role", place)
    if role not in ROLES:
        raise place.error(
            f"{field}.role",
            f"unknown role {shortened(role)!r}{suggest(role, ROLES)}; use one of {', '.join(ROLES)}",
        )
    content = require(value, "content", f"{field}.content", place)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise place.error(
            f"{field}.content", f"must be a string or a list of parts, not {json_type(content)}"
        )
    parts = [_part(part, f"{field}.content[{index}]", place) for index, part in enumerate(content)]
    for part in parts if role != "user" else ():
        if part["type"] == "text" and (found := _placeholder(part["text"])):
            problem = f"holds {found!r}, the placeholder of a picture, which only users send"
            raise place.error(f"{field}.content", f"{problem}; take it out or drop the record")
    if not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise place.error(f"{field}.content", "is empty; drop the record or write the text")
    if role != "user" and any(part["type"] != "text" for part in parts):
        raise place.error(
            f"{field}.content",
            f"media inside a message of the {role} are not supported; move them to the user's",
        )
    return {"role": role, "content": parts}


def _placeholder(text: str) -> str:
    """Return the first thing in a text that stands for a picture; empty if there is none."""
    if match := PLACEHOLDER.search(text):
        return match[0]
    match = LONE_TAG.search(text)
    return f"<{match[1]}>" if match and f"</{match[1]}>" not in text else ""


def _part(value: Any, field: str, place: Place) -> dict[str, str]:
    if not isinstance(value, dict):
        raise place.error(field, f"must be an object with a type, not {json_type(value)}")
    kind = require_text(value, "type", f"{field}.type", place)
    if kind not in PART_FIELDS:
        choices = ", ".join(PART_FIELDS)
        raise place.error(
            f"{field}.type",
            f"unknown content type {shortened(kind)!r}{suggest(kind, PART_FIELDS)}; use one of {choices}",
        )
    name = PART_FIELDS[kind]
    check_names(value, ("type", name), field, place)
    if name == "file":
        # WebDataset readers lower-case member names, so the record must too.
        file = require_text(value, name, f"{field}.file", place).lower()
        if "/" in file or "\\" in file:
            problem = "is a path or an address; media lie in the tar under the record's key"
            raise place.error(f"{field}.file", f"{shortened(file)!r} {problem}; write 00.jpg for KEY.00.jpg")
        return {"type": kind, "file": file}
    return {
        "type": kind,
        "text": check_text(require(value, name, f"{field}.text", place), f"{field}.text", place),
    }


def _check_turns(
    messages: Iterable[Mapping[str, Any]], first: str, field: str, place: Place, offset: int = 0
) -> None:
    """Check that user and assistant take turns."""
    other = {"user": "assistant", "assistant": "user"}
    expected, index = first, offset - 1
    for index, message in enumerate(messages, start=offset):
        if message["role"] != expected:
            problem = f"is {message['role']!r} where {expected!r} must come; user and assistant take turns"
            raise place.error(f"{field}[{index}].role", problem)
        expected = other[expected]
    if index < offset:
        raise place.error(field, "has no message of the user")


def _check_media(messages: Iterable[Mapping[str, Any]], media: Mapping[str, bytes], place: Place) -> None:
    """Check that the media of the tar are exactly those that the messages name."""
    parts = [part for message in messages for part in message["content"] if part["type"] != "text"]
    named = {part["file"] for part in parts}
    for name in sorted(named - set(media)):
        have = shortened(", ".join(sorted(media))) or "no media"
        problem = f"names {shortened(name)!r}, but the tar holds {have} for this key{suggest(name, media)}"
        raise place.error("messages", f"{problem}; add the member")
    for name in sorted(set(media) - named):
        raise place.error(
            shortened(name),
            "is in the tar, but no message names it; name it in a content part or drop the member",
        )


def _margin(raw: dict[str, Any], kind: Kind, place: Place) -> float:
    value = raw.get("margin")
    if value is None or kind is not Kind.PREFERENCE:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise place.error("margin", f"must be a number, not {json_type(value)}")
    # The comparison also refuses NaN, and integers too long for a float.
    if not 0 <= value <= sys.float_info.max:
        raise place.error(
            "margin",
            f"must be finite and not negative, not {str(value)[:40]}; to invert it, swap chosen and rejected",
        )
    return float(value)


def _answer(raw: dict[str, Any], place: Place) -> Any:
    """Return the answer, which may be anything that JSON can say and every process can pass on."""
    level = [raw.get("answer")]
    for _ in range(MAX_DEPTH + 1):
        for value in level:
            if isinstance(value, str):
                check_text(value, "answer", place)
            elif isinstance(value, float) and not math.isfinite(value):
                raise place.error("answer", f"holds {value}, which is no JSON; write a number or null")
        level = [inner for value in level if isinstance(value, (list, dict)) for inner in _inside(value)]
        if not level:
            return raw.get("answer")
    raise place.error("answer", f"is nested more than {MAX_DEPTH} levels deep; write it flatter")


def _inside(value: list[Any] | dict[str, Any]) -> list[Any]:
    return value if isinstance(value, list) else [*value, *value.values()]
