# SPDX-License-Identifier: Apache-2.0
"""Mathematical answers, compared by their meaning: fractions, roots, sets, equations, in LaTeX or plain."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ixc_lightning.rollout.verifiers import AnswerVerifier
from ixc_lightning.types import InputError

DELIMITERS = ("$", "\\(", "\\[", "\\boxed")
"""What begins mathematics within a text."""


class MathMatch(AnswerVerifier):
    r"""Right is a response whose last mathematical expression means what the answer means.

    By ``math-verify``: 1/2, 0.5 and \frac{1}{2} are equal, and so are x = 2 and 2, (x + 1)² and
    x² + 2x + 1. A record's answer that is no mathematics is never right: take ``ExactMatch`` for it.

    Needs ``pip install 'ixc-lightning[math]'``. Works in the main thread alone, because an expression that
    takes too long is ended by a signal.

    Args:
        pattern: as in ``AnswerVerifier``; the expression is looked for in its group.
        digits: decimals to which floats are compared.
        timeout: seconds for one expression; one that takes longer is wrong.

    Raises:
        InputError: math-verify is not installed, or a value is out of its range.
    """

    def __init__(self, pattern: str | None = None, digits: int = 6, timeout: int = 5) -> None:
        super().__init__(pattern)
        if digits < 0 or timeout < 1:
            raise InputError(
                f"MathMatch.digits is {digits} and .timeout {timeout}, but must be at least 0 and at least 1"
            )
        if find_spec("math_verify") is None:
            raise InputError("MathMatch needs math-verify: pip install 'ixc-lightning[math]'")
        self.digits = digits
        self.timeout = timeout
        self.library = import_module("math_verify")

    def agrees(self, said: str, answer: Any) -> bool:
        """Whether the last expression said means the answer, which may be a number or its text."""
        wanted = str(answer)
        if not any(mark in wanted for mark in DELIMITERS):
            wanted = f"${wanted}$"  # bare LaTeX is not recognised as such
        gold, found = (self.library.parse(text, parsing_timeout=self.timeout) for text in (wanted, said))
        # Not symmetric: the answer comes first.
        return bool(gold) and self.library.verify(
            gold, found, float_rounding=self.digits, timeout_seconds=self.timeout
        )
