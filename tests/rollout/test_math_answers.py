# SPDX-License-Identifier: Apache-2.0
"""Mathematics is right by its meaning."""

import pytest

from ixc_lightning.rollout import MathMatch
from ixc_lightning.types import InputError
from tests.rollout.prompts import STOP, rollout_of


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("It is 42.", 42, True),
        ("It is 43.", 42, False),
        ("The answer is 0.5", r"\frac{1}{2}", True),
        (r"so we get \boxed{\frac{2}{4}}", "1/2", True),
        (r"$x = \sqrt2$", r"\sqrt{2}", True),
        (r"$(x+1)^2$", "x^2+2x+1", True),
        (r"$x^2+1$", "x^2+2x+1", False),
        (r"$\{1, 2\}$", r"\{2, 1\}", True),
        (r"First 7, then $12$", "12", True),
        ("no mathematics at all", "12", False),
        ("", "12", False),
        ("", "", False),
        (r"$3$", ["2", "3"], True),
    ],
)
def test_an_answer_is_compared_by_its_meaning(said, answer, right):
    assert MathMatch()([said], rollout_of([[5, STOP]], [answer])).item() == right


def test_the_pattern_says_where_the_answer_stands():
    verifier = MathMatch(r"answer:(.*?)(?:\n|$)")
    said = ["answer: $1/2$\nor 7", "7"]
    assert verifier(said, rollout_of([[5, STOP]] * 2, ["0.5", "7"])).tolist() == [1, 0]


@pytest.mark.parametrize("options", [{"digits": -1}, {"timeout": 0}])
def test_settings_out_of_their_range_are_refused(options):
    with pytest.raises(InputError, match=r"MathMatch\.digits"):
        MathMatch(**options)


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ixc_lightning.rollout.math_answers.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ixc-lightning\[math\]'"):
        MathMatch()
