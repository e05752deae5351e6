# SPDX-License-Identifier: Apache-2.0
"""Each kind of constraint holds where a reader would say so, and a wrong one is named."""

from pathlib import Path

import pytest

from ixc_lightning.rollout import InstructionFollowing
from ixc_lightning.rollout.constraints import KINDS, bullets, kept, paragraphs, sentences, words
from ixc_lightning.types import InputError
from tests.rollout.prompts import STOP, rollout_of


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("one", 1), ("one, two;three", 3), ("don't stop-gap 3.5", 3), ("été où", 2), ("- * !", 0)],
)
def test_words_are_counted_without_signs(text, count):
    assert words(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("One... Two", 2),
        ("It is 3.5 metres.", 1),
        ('He said "stop." Then he left.', 2),
        ("\u4e00\u3002\u4e8c\uff01\u4e09", 3),
    ],
)
def test_sentences_end_with_their_signs(text, count):
    assert sentences(text) == count


def test_paragraphs_are_divided_by_empty_lines():
    assert paragraphs("a\nb\n\n c \n \n\nd") == 3
    assert paragraphs("\n\n") == 0


def test_bullets_are_lines_that_begin_with_a_sign_or_a_number():
    assert bullets("- a\n * b\n• c\n1. d\n2) e\n-f\n3.5 g\ntext - h") == 5


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ({"kind": "words", "at_least": 2, "at_most": 3}, ["a b", "a b c"], ["a", "a b c d"]),
        ({"kind": "sentences", "at_most": 1}, ["One."], ["One. Two."]),
        ({"kind": "paragraphs", "at_least": 2}, ["a\n\nb"], ["a\nb"]),
        ({"kind": "bullets", "at_least": 2, "at_most": 2}, ["- a\n- b"], ["- a", "- a\n- b\n- c"]),
        ({"kind": "characters", "at_most": 3}, ["abc"], ["abcd"]),
        ({"kind": "keywords", "all": ["tide", "low moon"]}, ["Low moon, TIDE"], ["tides, low moon", "tide"]),
        ({"kind": "keywords", "any": ["a", "b"]}, ["a", "b"], ["c"]),
        ({"kind": "keywords", "none": ["sea", ","]}, ["seaside"], ["the Sea.", "a, b"]),
        ({"kind": "case", "is": "lower"}, ["abc 1!"], ["Abc"]),
        ({"kind": "case", "is": "upper"}, ["ABC 1!"], ["ABc"]),
        ({"kind": "json"}, ['{"a": [1]}', "3", '```json\n{"a": 1}\n```'], ["{a: 1}", '{"a": 1} is it']),
        ({"kind": "starts_with", "text": "Dear"}, ["Dear all"], ["dear all", "My Dear"]),
        ({"kind": "ends_with", "text": "Bye."}, ["so, Bye."], ["Bye. P.S."]),
        ({"kind": "matches", "pattern": r"^\d+$"}, ["12", "a\n12"], ["12a"]),
    ],
)
def test_a_constraint_holds_for_the_good_and_not_for_the_bad(constraint, good, bad):
    assert [kept(text, constraint) for text in good] == [True] * len(good)
    assert [kept(text, constraint) for text in bad] == [False] * len(bad)


def _score(text, answer):
    return InstructionFollowing()([text], rollout_of([[5, STOP]], [answer])).item()


def test_all_constraints_must_be_kept():
    answer = {"constraints": [{"kind": "case", "is": "lower"}, {"kind": "words", "at_most": 2}]}
    assert _score("a b", answer) == 1
    assert _score("A b", answer) == 0
    assert _score("a b c", answer) == 0


def test_an_empty_response_follows_nothing_and_without_an_answer_nothing_is_right():
    assert _score(" ", {"constraints": [{"kind": "words", "at_most": 2}]}) == 0
    assert _score("a", None) == 0


def test_space_around_a_response_does_not_matter():
    assert _score("\n a.\n", {"constraints": [{"kind": "ends_with", "text": "a."}]}) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("7", "set:0, answer: names no constraints"),
        ({"constraints": []}, "names no constraints"),
        (
            {"constraints": [{"kind": "word"}]},
            r"set:0, answer.constraints\[0\]: has the kind 'word'; use one of",
        ),
        ({"constraints": ["words"]}, "has the kind None"),
        ({"constraints": [{"kind": "json"}, {"kind": "words", "most": 3}]}, r"constraints\[1\].*has 'most'"),
        ({"constraints": [{"kind": "words", "at_most": "3"}]}, "at_most: '3'; write a whole number"),
        ({"constraints": [{"kind": "words", "at_most": True}]}, "write a whole number"),
        ({"constraints": [{"kind": "keywords", "all": "x"}]}, "write a list of texts"),
        ({"constraints": [{"kind": "keywords", "all": [1]}]}, "write a list of texts"),
        ({"constraints": [{"kind": "words"}]}, "says nothing; give at_least or at_most"),
        ({"constraints": [{"kind": "case", "is": "title"}]}, "write lower or upper"),
        ({"constraints": [{"kind": "matches", "pattern": "("}]}, "has the pattern"),
    ],
)
def test_what_cannot_be_understood_is_named(answer, message):
    with pytest.raises(InputError, match=message):
        _score("a", answer)


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "docs/make_pairs.md").read_text()
    assert [name for name in KINDS if f"`{name}`" not in text] == []
