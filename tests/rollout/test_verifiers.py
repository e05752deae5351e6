# SPDX-License-Identifier: Apache-2.0
"""Verifiers: right is right however it is written, and everything else is wrong."""

from random import Random

import pytest
import torch

from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.datamodules.sources._digit_questions import SKILLS, draw_task
from ixc_lightning.rollout import ExactMatch, Format, LengthPenalty, MultipleChoice, NumberMatch
from ixc_lightning.types import InputError
from tests.rollout.prompts import STOP, rollout_of

DIGITS = r"^(?:.*\b(?:is|are) )?(?:the )?(.+?)(?: one| digits)?\.?$"
"""The bare answer inside every phrasing of the digits."""


def judge(verifier, text, answer):
    return verifier([text], rollout_of([[5, STOP]], [answer])).item()


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("Paris", "Paris", True),
        (" paris. ", "Paris", True),
        ("New \n York", "new york", True),
        ("4 7", "4 7", True),
        ("7", 7, True),
        ("Paris!", "Paris", False),
        ("Paris or Rome", "Paris", False),
        ("", "Paris", False),
        ("Rome", ["Paris", "Rome"], True),
        ("Oslo", ["Paris", "Rome"], False),
    ],
)
def test_an_exact_match_forgives_case_spaces_and_a_full_stop_alone(said, answer, right):
    assert judge(ExactMatch(), said, answer) == right


@pytest.mark.parametrize(
    ("said", "right"),
    [("I think \\boxed{12}", True), ("\\boxed{13}", False), ("12", False), ("\\boxed{}", False)],
)
def test_a_pattern_takes_the_answer_out_of_the_response(said, right):
    assert judge(ExactMatch(r"\\boxed\{(.*?)\}"), said, "12") == right


def test_a_group_that_took_no_part_in_the_match_is_no_answer():
    assert judge(ExactMatch(r"none|(\d)"), "none", "none") == 0


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("7", 7, True),
        ("It is 7.", "7", True),
        ("3 + 4 = 7", 7, True),
        ("7, which is more than 3", 7, False),  # the last number counts
        ("-7", 7, False),
        ("\u22127", -7, True),
        ("3-7", 7, True),
        ("1,234.50 dollars", 1234.5, True),
        ("1.2345e3", 1234.5, True),
        (".5", 0.5, True),
        ("50%", 50, True),
        ("0.3333333", 1 / 3, True),
        ("0.333", 1 / 3, False),
        ("seven", 7, False),
        ("digit7", 7, False),
        ("7th", 7, False),
        ("no number", 7, False),
        ("7", "between 5 and 9", False),  # an answer that is not one number is never right
        ("8", [7, 8], True),
    ],
)
def test_a_number_is_compared_as_a_number(said, answer, right):
    assert judge(NumberMatch(), said, answer) == right


def test_the_tolerance_is_relative():
    assert judge(NumberMatch(tolerance=0.01), "100.9", 100) == 1
    assert judge(NumberMatch(tolerance=0.01), "102", 100) == 0


@pytest.mark.parametrize("said", ["B", "b", "(b)", "B.", "B) Paris", "The answer is B", "answer: (B)",
                                  "Choice B.", "**B**", "A cat is seen, so (B)", "the answer is b.",
                                  "Option A is wrong, the answer is B", "\\boxed{B}"])  # fmt: skip
def test_the_letter_of_an_option_is_found(said):
    assert judge(MultipleChoice(), said, "B") == 1
    assert judge(MultipleChoice(), said, "(B)") == 1
    assert judge(MultipleChoice(), said, "C") == 0


@pytest.mark.parametrize("said", ["", "A", "A, B", "(A) or (B)", "A or B: I do not know", "Beta", "bob",
                                  "the answer is a bee", "The answer is A. The answer is B."])  # fmt: skip
def test_no_letter_another_one_or_several_are_wrong(said):
    assert judge(MultipleChoice(), said, "B") == 0


@pytest.mark.parametrize("verifier", [ExactMatch(), NumberMatch(), MultipleChoice()])
def test_a_record_without_an_answer_scores_nothing(verifier):
    rollout = rollout_of([[5, STOP], [5, STOP]], [None, "None"])
    assert verifier(["None", "None"], rollout)[0] == 0
    assert rollout.has_answer.tolist() == [False, True]


def test_an_answer_of_zero_or_false_is_an_answer():
    assert judge(NumberMatch(), "0", 0) == 1
    assert rollout_of([[5, STOP]], [0]).has_answer.tolist() == [True]


def test_every_row_is_compared_with_its_own_answer():
    rollout = rollout_of([[5, STOP]] * 3, ["a", "b", "c"])
    scores = ExactMatch()(["a", "a", "c"], rollout)
    assert scores.tolist() == [1, 0, 1]
    assert scores.dtype == torch.float32


def test_a_form_must_hold_for_the_whole_response():
    form = Format(r"<think>.+</think>\s*\w+")
    rollout = rollout_of([[5, STOP]] * 3)
    said = ["<think>hm\nhm</think> 7", "<think>hm</think>", "so <think>hm</think> 7"]
    assert form(said, rollout).tolist() == [1, 0, 0]


def test_long_responses_cost_and_the_stop_token_counts():
    rollout = rollout_of([[5, STOP, 0, 0], [5, 5, STOP, 0], [5, 5, 5, STOP], [5, 5, 5, 5]])
    assert LengthPenalty(free=2, limit=4)([""] * 4, rollout).tolist() == [0, -0.5, -1, -1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExactMatch("("), "ExactMatch.pattern .* is no regular expression"),
        (lambda: NumberMatch(r"\d"), "NumberMatch.pattern has 0 groups, but needs one"),
        (lambda: MultipleChoice(r"(a)(b)"), "MultipleChoice.pattern has 2 groups"),
        (lambda: Format("["), "Format.pattern .* is no regular expression"),
        (lambda: LengthPenalty(4, 4), "LengthPenalty.free is 4, but must be at least 0 and below limit"),
        (lambda: LengthPenalty(-1, 4), "LengthPenalty.free is -1"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("modality", SKILLS)
def test_every_phrasing_of_the_digits_is_verified(modality):
    """Each right answer is right and each wrong one is wrong, however both are phrased."""
    random = Random(0)
    tasks = [draw_task(modality, random) for _ in range(500)]
    rollout = rollout_of([[5, STOP]] * len(tasks), [task.answer for task in tasks])
    verifier = ExactMatch(DIGITS)
    assert verifier([task.chosen for task in tasks], rollout).all()
    assert not verifier([task.rejected for task in tasks], rollout).any()
    assert not verifier(["0 1 2 3 4 5 6 7 8 9 yes no first second even odd"] * len(tasks), rollout).any()


def test_the_prompts_of_the_digits_carry_answers(digits):
    records = ShardDataset(str(digits / "prompt/train"), kind=Kind.PROMPT)
    assert all(isinstance(record.answer, str) and record.answer for record in records)
