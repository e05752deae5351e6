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

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from ixc_lightning.types import InputError, Record

FIELDS = ("id", "source", "domain", "messages", "chosen", "rejected", "margin", "answer")
"""Every field that the JSON of a record may have."""
PART_FIELDS = {"text": "text", "image": "file", "video": "file"}
"""The content types, and the field that each has beside ``type``."""
ROLES = ("system", "user", "assistant")
Messages = tuple[dict[str, Any], ...]


class Kind(StrEnum):
    """What a record is for, and so what it must have."""

    PREFERENCE = "preference"
    INSTRUCTION = "instruction"
    PROMPT = "prompt"


class Place(NamedTuple):
    """Where a record lies, for messages.

    Attributes:
        shard: path of the tar.
        key: WebDataset key of the sample.
    """

    shard: str
    key: str

    def error(self, field: str, problem: str) -> InputError:
        """Return the error that names this place, the field, and what to do."""
        return InputError(f"{self.shard}, sample {self.key!r}, {field}: {problem}")


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
    raw = _load_json(data, place)
    _check_names(raw, FIELDS, "", place)
    for name in ("id", "source", "domain"):
        _require_text(raw, name, name, place)
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
        answer=raw.get("answer"),
        media=dict(media),
    )


def _load_json(data: bytes, place: Place) -> dict[str, Any]:
    try:
        raw = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise place.error(
            "json", f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise place.error("json", f"not valid JSON ({error}); write it with json.dumps") from None
    if not isinstance(raw, dict):
        raise place.error("json", f"must be an object with the fields {', '.join(FIELDS)}, not {_name(raw)}")
    return raw


def _conversation(raw: dict[str, Any], kind: Kind, place: Place) -> Messages:
    messages = _messages(_require(raw, "messages", "messages", place), "messages", place)
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
        _response(_require(raw, name, name, place), name, place) for name in ("chosen", "rejected")
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
        raise place.error(field, f"must be {expected}, not {_name(value)}")
    if not value:
        raise place.error(field, "is empty; a record has at least one message")
    return tuple(_message(item, f"{field}[{index}]", place) for index, item in enumerate(value))


def _message(value: Any, field: str, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.error(field, f"must be an object with role and content, not {_name(value)}")
    _check_names(value, ("role", "content"), field, place)
    role = _require_text(value, "role", f"{field}.role", place)
    if role not in ROLES:
        raise place.error(
            f"{field}.role", f"unknown role {role!r}{_close(role, ROLES)}; use one of {', '.join(ROLES)}"
        )
    content = _require(value, "content", f"{field}.content", place)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise place.error(f"{field}.content", f"must be a string or a list of parts, not {_name(content)}")
    parts = [_part(part, f"{field}.content[{index}]", place) for index, part in enumerate(content)]
    if not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise place.error(f"{field}.content", "is empty; drop the record or write the text")
    if role != "user" and any(part["type"] != "text" for part in parts):
        raise place.error(
            f"{field}.content",
            f"media inside a message of the {role} are not supported; move them to the user's",
        )
    return {"role": role, "content": parts}


def _part(value: Any, field: str, place: Place) -> dict[str, str]:
    if not isinstance(value, dict):
        raise place.error(field, f"must be an object with a type, not {_name(value)}")
    kind = _require_text(value, "type", f"{field}.type", place)
    if kind not in PART_FIELDS:
        choices = ", ".join(PART_FIELDS)
        raise place.error(
            f"{field}.type", f"unknown content type {kind!r}{_close(kind, PART_FIELDS)}; use one of {choices}"
        )
    name = PART_FIELDS[kind]
    _check_names(value, ("type", name), field, place)
    if name == "file":
        # WebDataset readers lower-case member names, so the record must too.
        return {"type": kind, "file": _require_text(value, name, f"{field}.file", place).lower()}
    return {
        "type": kind,
        "text": _check_text(_require(value, name, f"{field}.text", place), f"{field}.text", place),
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
        have = ", ".join(sorted(media)) or "no media"
        raise place.error(
            "messages",
            f"names {name!r}, but the tar holds {have} for this key{_close(name, media)}; add the member",
        )
    for name in sorted(set(media) - named):
        raise place.error(
            name, "is in the tar, but no message names it; name it in a content part or drop the member"
        )


def _margin(raw: dict[str, Any], kind: Kind, place: Place) -> float:
    value = raw.get("margin")
    if value is None or kind is not Kind.PREFERENCE:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise place.error("margin", f"must be a number, not {_name(value)}")
    # The comparison also refuses NaN, and integers too long for a float.
    if not 0 <= value <= sys.float_info.max:
        raise place.error(
            "margin",
            f"must be finite and not negative, not {str(value)[:40]}; to invert it, swap chosen and rejected",
        )
    return float(value)


def _require(raw: Mapping[str, Any], name: str, field: str, place: Place) -> Any:
    if name not in raw:
        raise place.error(field, "is missing; add it")
    return raw[name]


def _require_text(raw: Mapping[str, Any], name: str, field: str, place: Place) -> str:
    value = _check_text(_require(raw, name, field, place), field, place)
    if not value.strip():
        raise place.error(field, "is empty; give it a value")
    return value


def _check_text(value: Any, field: str, place: Place) -> str:
    if not isinstance(value, str):
        raise place.error(field, f"must be a string, not {_name(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise place.error(
            field, "holds half of a surrogate pair, which no tokenizer takes; write the whole character"
        )
    return value


def _check_names(raw: Mapping[str, Any], known: Iterable[str], field: str, place: Place) -> None:
    known = tuple(known)
    for name in raw:
        if name not in known:
            problem = f"unknown field{_close(name, known)}; known are {', '.join(known)}"
            raise place.error(f"{field}.{name}" if field else name, problem)


def _close(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def _name(value: Any) -> str:
    """Return what JSON calls the type of ``value``."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
