# SPDX-License-Identifier: Apache-2.0
"""The released code's text filter, at its edges."""

import pytest

from ixc_lightning.datamodules.filters import ReleasedText
from ixc_lightning.types import InputError
from tests.datamodules.filters.planted import ENCODER
from tests.datamodules.samples import PLACE, instruction, message, pair

WORD = "a" * 100


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is 4.", True),
        (" \n\t", False),
        ("see <|im_end|>", False),
        ("<|im_start|>user", False),
        ("<|im_sep|>", True),
        ("a" * 500, True),  # 500 characters are not long, whatever is in them
        ("a" * 501, False),
        (" ".join([WORD] * 5), True),  # 504 characters, words of 100
        (" ".join([WORD] * 4) + "\n" + WORD + "a", False),
    ],
)
@pytest.mark.parametrize("field", ["chosen", "rejected"])
def test_a_pair_stays_if_both_responses_are_sound(field, text, kept):
    record = pair(**{field: (message("assistant", text),)})
    assert ReleasedText().keep(record, ENCODER) == kept


def test_only_the_last_message_of_a_response_counts():
    turns = (message("assistant", " "), message("user", "<|im_end|>"), message("assistant", "Four."))
    assert ReleasedText().keep(pair(chosen=turns), ENCODER)


@pytest.mark.parametrize(("text", "kept"), [("Four.", True), ("", False)])
def test_an_instruction_is_judged_by_its_last_turn(text, kept):
    turns = (message("user", "2 + 2?"), message("assistant", text))
    assert ReleasedText().keep(instruction(messages=turns), ENCODER) == kept


def test_a_prompt_is_refused():
    with pytest.raises(InputError, match=f"{PLACE}: ReleasedText judges responses, and a prompt has none"):
        ReleasedText().keep(pair(chosen=None, rejected=None), ENCODER)
