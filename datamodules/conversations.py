# SPDX-License-Identifier: Apache-2.0
"""Conversations as a program or a line of JSON gives them, with responses to be scored, as records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ixc_lightning.datamodules.given_media import HERE, picture_bytes, video_bytes
from ixc_lightning.datamodules.record_checks import Place, check_text, json_type
from ixc_lightning.datamodules.records import Kind, parse_record
from ixc_lightning.types import Record

Messages: TypeAlias = Sequence[Mapping[str, Any]]

UNKNOWN = "given"
"""Source and domain of a conversation that does not say them."""
BYTES = {"image": picture_bytes, "video": video_bytes}


class Candidates(NamedTuple):
    """A prompt and the responses to it that are to be scored.

    Attributes:
        record: holds the prompt's media, and names the place in messages.
        prompt: the conversation up to the responses.
        names: what each response is called.
        answers: the responses, each one or more messages of text.
    """

    record: Record
    prompt: Messages
    names: list[str]
    answers: list[Messages]


def candidates_of(record: Record) -> Candidates:
    """The responses of a record: both of a pair, or the last turn of an instruction."""
    if record.chosen is not None and record.rejected is not None:
        answers: list[Messages] = [record.chosen, record.rejected]
        return Candidates(record, record.messages, ["chosen", "rejected"], answers)
    return Candidates(record, record.messages[:-1], ["response"], [record.messages[-1:]])


def given_candidates(
    messages: Any,
    responses: Any,
    *,
    images: Any = None,
    videos: Any = None,
    shard: str,
    key: str,
    domain: str = UNKNOWN,
    folder: Path = HERE,
    allow_urls: bool = False,
) -> Candidates:
    """A prompt and responses from outside, checked as a record of a shard is.

    Args:
        messages: turns with ``role`` and ``content``, the user's last; ``content`` is a text or a list of
            parts: ``{"type": "text", "text": …}``, and ``{"type": "image"}`` or ``{"type": "video"}``, which
            take the next of ``images`` or ``videos``, or hold their own under ``image``, ``video``, ``path``
            or ``url``. A text alone is one turn of the user's.
        responses: texts, which may be empty.
        images: pictures in the order of their parts; without such parts they come before the first user's
            text.
        videos: clips, likewise.
        shard: the file or the argument that the conversation is from, for messages.
        key: which one it is there.
        domain: name of its task domain.
        folder: where relative paths begin.
        allow_urls: whether URLs may be fetched.

    Raises:
        InputError: naming the place and the field, if anything is not as it must be.
    """
    place = Place(shard, key)
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    texts = [
        _text(text, f"responses[{n}]", place) for n, text in enumerate(_list(responses, "responses", place))
    ]
    if not texts:
        raise place.error("responses", "is empty; give at least one response to score")
    given = {"image": _list(images, "images", place), "video": _list(videos, "videos", place)}
    media: dict[str, bytes] = {}
    turns = _with_files(turns, given, media, place, folder, allow_urls)
    raw = {"id": key, "source": UNKNOWN, "domain": domain, "messages": turns}
    record = parse_record(_as_json(raw, place), media, kind=Kind.PROMPT, shard=shard, key=key)
    answers: list[Messages] = [
        ({"role": "assistant", "content": [{"type": "text", "text": text}]},) for text in texts
    ]
    return Candidates(record, record.messages, [str(n) for n in range(len(texts))], answers)


def split_conversation(conversation: Any, *, shard: str, key: str) -> tuple[Any, str]:
    """The turns before the last one, and the text of the last one, which is the assistant's.

    Raises:
        InputError: there is no such turn, or it holds more than text.
    """
    place = Place(shard, key)
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise place.error("messages", "must be a list of messages, the response to be scored last")
    last = conversation[-1]
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise place.error("messages", "must end with a message of the assistant, the response to be scored")
    content, field = last.get("content"), f"messages[{len(conversation) - 1}].content"
    if isinstance(content, Sequence) and not isinstance(content, str):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise place.error(field, "media inside a response are not supported; move them to the user's")
        content = "".join(_text(part.get("text"), field, place) for part in content)
    return conversation[:-1], _text(content, field, place)


def _with_files(
    turns: Any,
    given: dict[str, list[Any]],
    media: dict[str, bytes],
    place: Place,
    folder: Path,
    allow_urls: bool,
) -> Any:
    """The turns with a file name in each media part; the bytes of the files are put into ``media``."""
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        return turns  # what is wrong with it is said where records are checked
    turns = _with_parts(turns, given)
    waiting = {kind: iter(enumerate(every)) for kind, every in given.items()}

    def named(part: Any, field: str) -> Any:
        if not isinstance(part, Mapping) or (kind := part.get("type")) not in BYTES:
            return part
        own = [name for name in (kind, "path", "url") if part.get(name) is not None]
        found = (field, part[own[0]]) if own else _next(waiting[kind], kind, place, given)
        file = f"{len(media):02d}.{kind}"
        media[file] = BYTES[kind](
            found[1], where=f"{place.shard}:{place.key}, {found[0]}", folder=folder, allow_urls=allow_urls
        )
        return {"type": kind, "file": file, **{n: v for n, v in part.items() if n not in ("type", *own)}}

    filled = [
        {
            **turn,
            "content": [named(part, f"messages[{t}].content[{p}]") for p, part in enumerate(turn["content"])],
        }
        if isinstance(turn.get("content"), list | tuple)
        else turn
        for t, turn in enumerate(turns)
    ]
    for kind, rest in waiting.items():
        if left := len(list(rest)):
            raise place.error(
                f"{kind}s",
                f"there are {len(given[kind])}, {left} more than parts of type {kind!r} without their own; "
                "give one for each",
            )
    return filled


def _with_parts(turns: Sequence[Mapping[str, Any]], given: dict[str, list[Any]]) -> list[Mapping[str, Any]]:
    """The turns with a part for each of the given media, before the first user's text, if none has a part."""
    parts = [
        part for turn in turns if isinstance(turn.get("content"), list | tuple) for part in turn["content"]
    ]
    placed = {part.get("type") for part in parts if isinstance(part, Mapping)}
    new = [{"type": kind} for kind, every in given.items() if kind not in placed for _ in every]
    first = next((n for n, turn in enumerate(turns) if turn.get("role") == "user"), None)
    if not new or first is None:
        return list(turns)
    content = turns[first].get("content")
    old = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    return [*turns[:first], {**turns[first], "content": [*new, *old]}, *turns[first + 1 :]]


def _next(
    waiting: Iterator[tuple[int, Any]], kind: str, place: Place, given: dict[str, list[Any]]
) -> tuple[str, Any]:
    found = next(waiting, None)
    if found is None:
        problem = f"there are {len(given[kind])}, fewer than parts of type {kind!r} without their own"
        raise place.error(f"{kind}s", f"{problem}; give one for each")
    return f"{kind}s[{found[0]}]", found[1]


def _list(value: Any, field: str, place: Place) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        raise place.error(field, f"must be a list, not of type {kind}; put an only one into a list too")
    return list(value)


def _text(value: Any, field: str, place: Place) -> str:
    if not isinstance(value, str):
        raise place.error(field, f"must be a text, not {json_type(value)}")
    return check_text(value, field, place)


def _as_json(raw: dict[str, Any], place: Place) -> bytes:
    def refuse(value: object) -> None:
        raise place.error("messages", f"hold a {type(value).__name__} where text belongs")

    return json.dumps(raw, default=refuse).encode()
