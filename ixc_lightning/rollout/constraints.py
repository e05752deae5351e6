# SPDX-License-Identifier: Apache-2.0
"""Instructions about form that a rule can check: lengths, keywords, lists, case, JSON.

A record says in its ``answer`` what its prompt asks for:

    {"constraints": [{"kind": "words", "at_least": 20, "at_most": 50},
                     {"kind": "keywords", "all": ["tide"], "none": ["sea", "ocean"]},
                     {"kind": "case", "is": "lower"}]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.types import InputError, Rollout

WORD = re.compile(r"\w+(?:['\u2019.-]\w+)*")
"""Letters and digits in a row, with apostrophes, hyphens and points inside."""
SENTENCE_END = re.compile(r"[.!?\u2026]+[\"')\]\u201d\u2019]*(?=\s|$)|[\u3002\uff01\uff1f]+")
"""A full stop, or several, before a space or the end; those of Chinese and Japanese anywhere."""
BULLET = re.compile(r"^\s*(?:[-*+\u2022]|\d+[.)])\s+\S", re.MULTILINE)
"""A line that begins with a dash, a star, a dot, or a number with a point or bracket."""
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
Settings: TypeAlias = dict[str, Any]


class Kind(NamedTuple):
    """A kind of constraint.

    Attributes:
        fields: what it may say, with the type of each.
        holds: whether a text keeps to it.
    """

    fields: dict[str, type]
    holds: Callable[[str, Settings], bool]


def words(text: str) -> int:
    """Number of words; of languages without spaces, count ``characters``."""
    return len(WORD.findall(text))


def sentences(text: str) -> int:
    """Number of sentences: of ends of sentences, and one more where text follows the last."""
    parts = SENTENCE_END.split(text)
    return sum(bool(part.strip()) for part in parts)


def paragraphs(text: str) -> int:
    """Number of paragraphs, which empty lines divide."""
    return sum(bool(part.strip()) for part in PARAGRAPH_BREAK.split(text))


def bullets(text: str) -> int:
    """Number of entries of lists."""
    return len(BULLET.findall(text))


def contains(text: str, keyword: str) -> bool:
    """Whether a keyword or phrase stands in a text as whole words, whatever its case."""
    # Beside a sign, such as the comma, there is no end of a word to look for.
    before, behind = (
        edge if one.isalnum() else "" for edge, one in ((r"(?<!\w)", keyword[0]), (r"(?!\w)", keyword[-1]))
    )
    return re.search(before + re.escape(keyword) + behind, text, re.IGNORECASE) is not None


def kept(text: str, constraint: Any) -> bool:
    """Whether a text keeps to one constraint.

    Raises:
        InputError: naming the field, if the constraint is none of ``KINDS`` or says what its kind does not.
    """
    name = constraint.get("kind") if isinstance(constraint, dict) else None
    if name not in KINDS:
        raise InputError(f"has the kind {name!r}; use one of {', '.join(KINDS)}")
    kind = KINDS[name]
    given = {field: value for field, value in constraint.items() if field != "kind"}
    for field, value in given.items():
        if field not in kind.fields:
            raise InputError(
                f"of kind {name} has {field!r}; it may have {', '.join(kind.fields) or 'nothing'}"
            )
        # A truth value is an int to Python.
        if not isinstance(value, kind.fields[field]) or isinstance(value, bool):
            wanted = {int: "a whole number", str: "a text", list: "a list of texts"}[kind.fields[field]]
            raise InputError(f"of kind {name} has {field}: {value!r}; write {wanted}")
        if isinstance(value, list) and not all(isinstance(one, str) and one for one in value):
            raise InputError(f"of kind {name} has {field}: {value!r}; write a list of texts")
    if kind.fields and not given:
        raise InputError(f"of kind {name} says nothing; give {' or '.join(kind.fields)}")
    return kind.holds(text, given)


class InstructionFollowing:
    """Scores 1 where a response keeps to all constraints of its record's answer, else 0.

    Without an answer, and for an empty response, the score is 0. ``docs/make_pairs.md`` lists the kinds of
    constraint.
    """

    def __call__(self, texts: Sequence[str], rollout: Rollout) -> Float[Tensor, " R"]:
        """1 for each response that keeps to everything.

        Raises:
            InputError: naming the record and the constraint, if one cannot be understood.
        """
        rows = zip(texts, rollout.answers, rollout.keys, strict=True)
        right = [answer is not None and self.follows(text, answer, key) for text, answer, key in rows]
        return torch.tensor(right, dtype=torch.float32, device=rollout.ended.device)

    def follows(self, text: str, answer: Any, key: str) -> bool:
        """Whether a text keeps to all constraints of the answer of the record ``key``."""
        constraints = answer.get("constraints") if isinstance(answer, dict) else None
        if not isinstance(constraints, list) or not constraints:
            raise InputError(
                f'{key}, answer: names no constraints; write {{"constraints": [{{"kind": …}}, …]}}, or take '
                "a verifier that compares answers"
            )
        results = []
        for place, constraint in enumerate(constraints):
            try:
                results.append(kept(text.strip(), constraint))
            except InputError as error:
                raise InputError(f"{key}, answer.constraints[{place}]: {error}") from error
        return bool(text.strip()) and all(results)


def _counted(count: Callable[[str], int]) -> Kind:
    def holds(text: str, given: Settings) -> bool:
        return given.get("at_least", 0) <= count(text) <= given.get("at_most", float("inf"))

    return Kind({"at_least": int, "at_most": int}, holds)


def _keywords(text: str, given: Settings) -> bool:
    found = {name: [contains(text, one) for one in given.get(name, [])] for name in ("all", "any", "none")}
    return all(found["all"]) and not any(found["none"]) and (any(found["any"]) or "any" not in given)


def _case(text: str, given: Settings) -> bool:
    if given["is"] not in ("lower", "upper"):
        raise InputError(f"of kind case has is: {given['is']!r}; write lower or upper")
    return text == (text.lower() if given["is"] == "lower" else text.upper())


def _json(text: str, given: Settings) -> bool:
    try:
        json.loads(text.removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True


def _pattern(text: str, given: Settings) -> bool:
    try:
        return re.search(given["pattern"], text, re.MULTILINE) is not None
    except re.error as error:
        raise InputError(f"of kind matches has the pattern {given['pattern']!r}: {error}") from error


KINDS = {
    "words": _counted(words),
    "sentences": _counted(sentences),
    "paragraphs": _counted(paragraphs),
    "bullets": _counted(bullets),
    "characters": _counted(len),
    "keywords": Kind({"all": list, "any": list, "none": list}, _keywords),
    "case": Kind({"is": str}, _case),
    "json": Kind({}, _json),
    "starts_with": Kind({"text": str}, lambda text, given: text.startswith(given["text"])),
    "ends_with": Kind({"text": str}, lambda text, given: text.endswith(given["text"])),
    "matches": Kind({"pattern": str}, _pattern),
}
"""Every kind of constraint, by its name in records."""
