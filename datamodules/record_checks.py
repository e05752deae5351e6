# SPDX-License-Identifier: Apache-2.0
"""What the fields of a record are checked with, and how a fault in one is told."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ixc_lightning.types import InputError

MAX_JSON_BYTES = 16_000_000
"""Longer JSON is refused unread: some millions of tokens, where a model takes thousands."""
MAX_DIGITS = 1000
"""Digits of a whole number; a float has room for 309."""
SHOWN = 80
"""Characters of what a record says that a message repeats."""


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


def load_json(data: bytes, place: Place, fields: Iterable[str]) -> dict[str, Any]:
    """Return the object that the bytes of a ``json`` member hold; it has some of ``fields``.

    Raises:
        InputError: naming the place, if they are too long, not UTF-8, or not the JSON of such an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise place.error(
            "json", f"has {len(data):,} bytes, the limit is {MAX_JSON_BYTES:,}; drop the record or shorten it"
        )
    try:
        raw = json.loads(data.decode("utf-8"), parse_int=_integer, object_pairs_hook=_object)
    except InputError as error:
        raise place.error("json", str(error)) from None
    except UnicodeDecodeError as error:
        raise place.error(
            "json", f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise place.error("json", f"not valid JSON ({error}); write it with json.dumps") from None
    known = ", ".join(fields)
    if not isinstance(raw, dict):
        raise place.error("json", f"must be an object with the fields {known}, not {json_type(raw)}")
    check_names(raw, fields, "", place)
    return raw


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InputError(f"holds a number of {len(digits):,} digits; write it as a string or drop it")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InputError(f"the field {shortened(twice)!r} comes twice in one object; keep one of them")
    return fields


def require(raw: Mapping[str, Any], name: str, field: str, place: Place) -> Any:
    """Return ``raw[name]``; an error says that ``field`` is missing."""
    if name not in raw:
        raise place.error(field, "is missing; add it")
    return raw[name]


def require_text(raw: Mapping[str, Any], name: str, field: str, place: Place) -> str:
    """Return ``raw[name]``, which must be a string with something in it."""
    value = check_text(require(raw, name, field, place), field, place)
    if not value.strip():
        raise place.error(field, "is empty; give it a value")
    return value


def check_text(value: Any, field: str, place: Place) -> str:
    """Return ``value``, which must be a string that a tokenizer takes."""
    if not isinstance(value, str):
        raise place.error(field, f"must be a string, not {json_type(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise place.error(
            field, "holds half of a surrogate pair, which no tokenizer takes; write the whole character"
        )
    return value


def check_names(raw: Mapping[str, Any], known: Iterable[str], field: str, place: Place) -> None:
    """Check that an object has no other fields than ``known``."""
    known = tuple(known)
    for name in raw:
        if name not in known:
            problem = f"unknown field{suggest(name, known)}; known are {', '.join(known)}"
            raise place.error(f"{field}.{shortened(name)}" if field else shortened(name), problem)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the question whether the closest of ``known`` was meant; empty if none is close."""
    matches = difflib.get_close_matches(shortened(name), list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def shortened(text: str) -> str:
    """Return a text that is fit for a message: in one line, not longer than ``SHOWN``."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def json_type(value: Any) -> str:
    """Return what JSON calls the type of ``value``."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
