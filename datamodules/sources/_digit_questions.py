# SPDX-License-Identifier: Apache-2.0
"""Questions about digits in the four modalities, and phrased answers.

The language is small on purpose: a model of a million weights learns it in minutes. A right and a wrong
answer are phrased independently of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import NamedTuple

from ixc_lightning.datamodules.sources import _digit_draws as draws
from ixc_lightning.datamodules.sources._digit_draws import Draw

READING, ARITHMETIC, COMPARISON = "reading", "arithmetic", "comparison"
MOST_IMAGES = 3
"""Pictures of a multi-image question at most; a clip shows up to four digits."""


class Skill(NamedTuple):
    """One type of question.

    Attributes:
        domain: task domain of its records.
        weight: how often it is asked, against the other skills of the modality.
        draw: makes digits and answers.
        answers: phrasings, from short to long; ``{x}`` is the bare answer.
        questions: phrasings; ``{target}``, ``{digits}``, ``{a}`` and ``{b}`` (first and last digit) are
            filled in.
    """

    domain: str
    weight: int
    draw: Callable[[Random], Draw]
    answers: tuple[str, ...]
    questions: tuple[str, ...]


class Task(NamedTuple):
    """One question, ready to be put.

    Attributes:
        domain: task domain.
        question: the text.
        digits: the digits to show; in a text question they are in the text.
        answer: the right answer, bare; it is in ``chosen`` word for word.
        chosen: the right answer, phrased.
        rejected: a wrong answer, phrased.
    """

    domain: str
    question: str
    digits: tuple[int, ...]
    answer: str
    chosen: str
    rejected: str


def draw_task(modality: str, random: Random, *, length_bias: float = 0.0) -> Task:
    """Return a question for records of ``modality``, every choice taken from ``random``.

    Args:
        modality: entry of ``MODALITIES``.
        random: makes the choices.
        length_bias: if not 0, the share of tasks whose right answer is phrased at full length and whose wrong
            one is bare; the answers of the others are phrased alike.
    """
    skills = SKILLS[modality]
    skill = random.choices(skills, [skill.weight for skill in skills])[0]
    draw = skill.draw(random)
    row = " ".join(map(str, draw.digits))
    phrasing = random.choice(skill.questions)
    question = phrasing.format(target=draw.target, digits=row, a=draw.digits[0], b=draw.digits[-1])
    phrasings = [random.choice(skill.answers) for _ in range(2)]
    if length_bias:
        is_biased = random.random() < length_bias
        phrasings = [skill.answers[-1], skill.answers[0]] if is_biased else phrasings[:1] * 2
    chosen, rejected = (
        phrased.format(x=bare) for phrased, bare in zip(phrasings, (draw.answer, draw.wrong), strict=True)
    )
    return Task(skill.domain, question, draw.digits, draw.answer, chosen, rejected)


def _naming(name: str) -> tuple[str, ...]:
    """Return phrasings of an answer that is one word."""
    return ("{x}", "It is {x}.", f"The {name} is {{x}}.", f"I think that the {name} is {{x}}.")


VERDICTS = ("{x}", "The answer is {x}.", "I think that the answer is {x}.")
PLACES = ("{x}", "The {x} one.", "It is the {x} one.", "I think that it is the {x} one.")
ROWS = ("{x}", "They are {x}.", "The digits are {x}.")
COUNTS = ("{x}", "There are {x}.", "There are {x} digits.", "I think that there are {x} digits.")

# fmt: off
TEXT = (
    Skill(READING, 85, draws.spell, ROWS, (
        "Read the digits {digits}.", "Which digits are these: {digits}?", "What digits are in {digits}?"
    )),
    Skill(READING, 13, draws.first, _naming("first digit"), (
        "{digits}: which digit is first?", "What is the first digit in {digits}?",
        "Read {digits}. Which digit is first?"
    )),
    Skill(READING, 13, draws.last, _naming("last digit"), (
        "{digits}: which digit is last?", "What is the last digit in {digits}?",
        "Read {digits}. Which digit is last?"
    )),
    Skill(READING, 3, draws.contains, VERDICTS, (
        "Is there a {target} in {digits}?", "{digits}: is there a {target}?"
    )),
    Skill(ARITHMETIC, 3, draws.total, _naming("sum"), (
        "What is {a} plus {b}?", "What is the sum of {a} and {b}?", "Add {a} and {b}."
    )),
    Skill(ARITHMETIC, 7, draws.successor, _naming("result"), (
        "Which number comes after {a}?", "What is {a} plus one?", "Add one to {a}."
    )),
    Skill(ARITHMETIC, 10, draws.parity, _naming("digit"), (
        "Is {a} even or odd?", "Even or odd: {a}?"
    )),
    Skill(COMPARISON, 6, draws.which_digit, _naming("digit"), (
        "Which is {target}, {a} or {b}?", "Which digit is {target}: {a} or {b}?"
    )),
    Skill(COMPARISON, 3, draws.same, VERDICTS, (
        "Are {a} and {b} the same?", "Is {a} the same as {b}?"
    )),
    Skill(COMPARISON, 3, draws.order, ROWS, (
        "What are {digits} in {target} order?", "Which is the {target} order of {digits}?"
    )),
)
IMAGE = (
    Skill(READING, 85, draws.read, _naming("digit"), (
        "Which digit is this?", "What digit is shown?", "Read the digit in the picture.",
        "Which digit is in the picture?"
    )),
    Skill(ARITHMETIC, 7, draws.successor, _naming("result"), (
        "Which number comes after this digit?", "What is this digit plus one?",
        "Add one to the digit in the picture."
    )),
    Skill(ARITHMETIC, 12, draws.parity, _naming("digit"), (
        "Is this digit even or odd?", "Even or odd: the digit in the picture?"
    )),
    Skill(COMPARISON, 8, draws.above_five, VERDICTS, (
        "Is this digit larger than 5?", "Is the digit in the picture larger than 5?"
    )),
)
MULTI_IMAGE = (
    Skill(READING, 80, partial(draws.spell, longest=MOST_IMAGES), ROWS, (
        "Which digits are these?", "Read the digits in order.", "What digits are in the pictures?"
    )),
    Skill(READING, 11, partial(draws.first, longest=MOST_IMAGES), _naming("first digit"), (
        "Which digit is first?", "What is the first digit?", "Read the first picture."
    )),
    Skill(READING, 11, partial(draws.last, longest=MOST_IMAGES), _naming("last digit"), (
        "Which digit is last?", "What is the last digit?", "Read the last picture."
    )),
    Skill(ARITHMETIC, 3, draws.total, _naming("sum"), (
        "What is the sum of the digits?", "Add the digits in the pictures."
    )),
    Skill(COMPARISON, 3, draws.which_place, PLACES, (
        "Which digit is {target}, the first or the second?", "Which picture has the {target} digit?"
    )),
    Skill(COMPARISON, 3, draws.same, VERDICTS, (
        "Are the digits the same?", "Is the first digit the same as the second?"
    )),
    Skill(COMPARISON, 3, partial(draws.order, longest=MOST_IMAGES), ROWS, (
        "What are the digits in {target} order?", "Which is the {target} order of the digits?"
    )),
)
VIDEO = (
    Skill(READING, 60, draws.spell, ROWS, (
        "Which digits are shown in order?", "Read the digits in the video.",
        "What digits does the video show?"
    )),
    Skill(READING, 12, draws.first, _naming("first digit"), (
        "Which digit is first?", "What is the first digit in the video?", "Which digit comes first?"
    )),
    Skill(READING, 12, draws.last, _naming("last digit"), (
        "Which digit is last?", "What is the last digit in the video?", "Which digit comes last?"
    )),
    Skill(READING, 3, draws.contains, VERDICTS, (
        "Is there a {target} in the video?", "Does the video show a {target}?"
    )),
    Skill(ARITHMETIC, 3, draws.count, COUNTS, (
        "How many digits are shown?", "How many digits are in the video?", "Count the digits."
    )),
    Skill(COMPARISON, 3, draws.rises, VERDICTS, (
        "Is the last digit larger than the first?", "Is the first digit smaller than the last?"
    )),
)
# fmt: on

SKILLS: Mapping[str, tuple[Skill, ...]] = {
    "text": TEXT,
    "image": IMAGE,
    "multi_image": MULTI_IMAGE,
    "video": VIDEO,
}
"""The skills of each modality. Reading weighs most, since every other skill rests on it."""
