# SPDX-License-Identifier: Apache-2.0
"""Texts as words: what makes no difference, and what does."""

import numpy as np
import pytest

from ixc_lightning.datamodules.filters._words import shingles, words_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is it?", "  what IS\nit "),
        ("STRASSE", "straße"),
        ("ﬁve", "five"),  # a ligature
        ("“Well”, he said…", "Well he said"),
        ("5 + 3", "5+3"),
        ("`print` **this**", "print this"),
        ("图片里 有什么。", "图片里有什么"),
    ],
)
def test_these_are_the_same_words(one, other):
    assert words_of(one) == words_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 + 3", "5 * 3"),
        ("5 - 3", "5 3"),
        ("1.5", "15"),
        ("कि", "का"),  # differ in a combining sign
        ("?!", "..."),
        ("12", "21"),
    ],
)
def test_these_are_other_words(one, other):
    assert words_of(one) != words_of(other)


def test_each_han_character_is_a_word():
    assert words_of("有 3 只猫") == ["有", "3", "只", "猫"]


def test_an_empty_text_has_no_words():
    assert words_of(" \n") == []


def test_shingles_are_runs_of_words():
    runs = shingles(["a", "b", "c", "a", "b"], 2)
    assert len(runs) == 4
    assert runs[0] == runs[3]
    assert len(set(runs.tolist())) == 3


def test_fewer_words_are_one_run_and_tags_tell_fields_apart():
    assert len(shingles(["a"], 3)) == len(shingles([], 3)) == 1
    assert not np.array_equal(shingles(["a"], 3, tag="chosen"), shingles(["a"], 3, tag="rejected"))
    assert not np.array_equal(shingles(["a", "bc"], 3), shingles(["ab", "c"], 3))
