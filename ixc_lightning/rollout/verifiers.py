# SPDX-License-Identifier: Apache-2.0
"""Scores that need no model: responses against reference answers, against a pattern, and by their length.

A verifier is called with the responses as text and with their rollout, and gives one score per row. Where a
record has no answer, there is nothing to be right about, and the score is 0: look at
``Rollout.has_answer`` before taking means. LaTeX and symbolic answers are beyond these rules:
``math_answers`` is for them, and ``constraints`` for instructions about form.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.rollout import length_penalty
from ixc_lightning.types import InputError, Rollout

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(rf"(?<![\w.])[-+\u2212]?(?:{DIGITS})(?:[eE][-+]?\d+)?(?!\w)")
"""A whole or decimal number, thousands with or without commas; no digits inside a word."""
CUE = re.compile(
    r"(?i:answer|choice)\s*(?i:is|:)?\s*(?:\(([A-Za-z])\)|([A-Z])\b|([a-z])(?=[.)]?\s*$))", re.MULTILINE
)
"""A letter that is called the answer."""
ALONE = r"(?<![\w'])([A-HJ-Z])(?=[.:,)*}]|\s+(?:or|and)\b|\s*$)"
OPTION = re.compile(rf"\(([A-Za-z])\)|{ALONE}|^([A-Za-z])[.)]?$", re.MULTILINE)
"""An option's letter: in brackets, a capital (I may be a word) that no word follows, or a line of its own."""


@runtime_checkable
class Verifier(Protocol):
    """Scores responses by a rule."""

    def __call__(self, texts: Sequence[str], rollout: Rollout) -> Float[Tensor, " R"]:
        """One score per row, on the device of the rollout; higher is better."""
        ...


class AnswerVerifier(ABC):
    """Scores 1 where the response gives the record's answer, else 0; 0 also where there is no answer.

    An answer that is a list means that each of its entries is right.

    Args:
        pattern: regular expression, whatever the case of letters, whose one group is the part of a response
            that is compared; a response in which it is not found is wrong. Null compares the whole response.

    Raises:
        InputError: the pattern is no regular expression with one group.
    """

    def __init__(self, pattern: str | None = None) -> None:
        self.pattern = None if pattern is None else _compiled(pattern, type(self).__name__)
        if self.pattern is not None and self.pattern.groups != 1:
            raise InputError(
                f"{type(self).__name__}.pattern has {self.pattern.groups} groups, but needs one: put round "
                "brackets around the answer, and (?:…) around everything else"
            )

    def __call__(self, texts: Sequence[str], rollout: Rollout) -> Float[Tensor, " R"]:
        """1 for each right response, 0 for every other one."""
        right = [
            answer is not None and self._agrees(text, answer)
            for text, answer in zip(texts, rollout.answers, strict=True)
        ]
        return torch.tensor(right, dtype=torch.float32, device=rollout.ended.device)

    def _agrees(self, text: str, answer: Any) -> bool:
        if self.pattern is not None:
            found = self.pattern.search(text)
            if found is None or found[1] is None:
                return False
            text = found[1]
        return any(self.agrees(text, one) for one in (answer if isinstance(answer, list) else [answer]))

    @abstractmethod
    def agrees(self, said: str, answer: Any) -> bool:
        """Whether what was said is the answer."""


class ExactMatch(AnswerVerifier):
    """Right is the answer itself, but for the case of letters, spaces, and a full stop at the end."""

    def agrees(self, said: str, answer: Any) -> bool:
        """Whether both are the same text."""
        return _plain(said) == _plain(str(answer))


class NumberMatch(AnswerVerifier):
    """Right is a response whose last number is the answer, within a tolerance.

    The last, because a response that reasons ends with its result. A number may be negative, have decimals,
    an exponent, and commas between thousands; in "3-4" the second number is 4.

    Args:
        pattern: as in ``AnswerVerifier``; the last number of its group counts.
        tolerance: largest difference from the answer, relative to it.
    """

    def __init__(self, pattern: str | None = None, tolerance: float = 1e-6) -> None:
        super().__init__(pattern)
        self.tolerance = tolerance

    def agrees(self, said: str, answer: Any) -> bool:
        """Whether the last number said is the answer, which may be a number or its text."""
        found, wanted = NUMBER.findall(said), NUMBER.findall(str(answer))
        if not found or len(wanted) != 1:
            return False
        return math.isclose(_number(found[-1]), _number(wanted[0]), rel_tol=self.tolerance)


class MultipleChoice(AnswerVerifier):
    """Right is a response that names the letter of the answer, and no other one, as its choice.

    "B", "(b)", "B. Paris", "The answer is B" and "answer: b" all name B. Where letters are called the answer,
    those count; else every option's letter that stands apart from the words. The record's answer is a letter.
    """

    def agrees(self, said: str, answer: Any) -> bool:
        """Whether exactly the answer's letter is named."""
        found = CUE.findall(said) or OPTION.findall(said.strip())
        named = {letter.upper() for letters in found for letter in letters if letter}
        return named == {str(answer).strip(" ().").upper()}


class Format:
    """Scores 1 where the whole response has a form, else 0, whatever it says.

    Args:
        pattern: regular expression that the response as a whole must match; a dot matches line breaks too.

    Raises:
        InputError: it is none.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = _compiled(pattern, "Format")

    def __call__(self, texts: Sequence[str], rollout: Rollout) -> Float[Tensor, " R"]:
        """1 where the form is kept."""
        kept = [self.pattern.fullmatch(text) is not None for text in texts]
        return torch.tensor(kept, dtype=torch.float32, device=rollout.ended.device)


class LengthPenalty:
    """Scores −1 for responses of ``limit`` tokens or more, 0 up to ``free`` tokens, and linearly in between.

    The soft punishment of overlong responses of DAPO (Yu et al. 2025, arXiv 2503.14476, §3.4).

    Args:
        free: tokens that cost nothing.
        limit: tokens from which the whole penalty is due; Sampling's ``max_tokens``, usually.

    Raises:
        InputError: ``free`` is not below ``limit``, or negative.
    """

    def __init__(self, free: int, limit: int) -> None:
        if not 0 <= free < limit:
            raise InputError(
                f"LengthPenalty.free is {free}, but must be at least 0 and below limit, which is {limit}"
            )
        self.free = free
        self.limit = limit

    def __call__(self, texts: Sequence[str], rollout: Rollout) -> Float[Tensor, " R"]:
        """The penalty of each response, stop token counted."""
        return length_penalty(rollout.lengths, free=self.free, limit=self.limit)


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise InputError(f"{where}.pattern {pattern!r} is no regular expression: {error}") from error


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))
