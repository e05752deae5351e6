# SPDX-License-Identifier: Apache-2.0
"""Texts as words, so that spelling, case and punctuation do not tell two texts apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from jaxtyping import UInt32

OPERATOR = re.compile(r"(?<=\d)\s*([-+*/=<>^%.\u00d7\u00f7\u2212])\s*(?=\d)")
"""A sign between two digits: without it, 5 - 3 would be 5 * 3."""
SINGLE = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
"""Kana and Han, which are written without spaces: each character counts as a word."""


class _Spaces(dict[int, str]):
    """For ``str.translate``: a space for punctuation (P, Sk), separators and controls (Z, C), else itself."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = " " if category[0] in "PZC" or category == "Sk" else chr(code)
        return self[code]


_SPACES = _Spaces()


def words_of(text: str) -> list[str]:
    """Return the words of a text: compatibility forms (NFKC) and case folded, punctuation left out.

    Signs between digits are words of their own, and so are kana and Han characters. A text of punctuation
    alone is one word.

    Example:
        >>> words_of("“What’s 12 + 30?”, she asked.")
        ['what', 's', '12', '+', '30', 'she', 'asked']
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    pieces = OPERATOR.split(folded)
    words = [
        word
        for place, piece in enumerate(pieces)
        for word in ([piece] if place % 2 else SINGLE.sub(r" \1 ", piece.translate(_SPACES)).split())
    ]
    return words or folded.split()


def shingles(words: Sequence[str], size: int, *, tag: str = "") -> UInt32[np.ndarray, " N"]:
    """Return a number for every run of ``size`` words, in order; fewer words are one run.

    Args:
        words: the words.
        size: words of a run.
        tag: goes into the numbers, so that those of different fields differ.
    """
    count = max(len(words) - size + 1, 1)
    runs = ("\0".join((tag, *words[place : place + size])) for place in range(count))
    return np.array([crc32(run.encode("utf-8", "surrogatepass")) for run in runs], dtype=np.uint32)
