# SPDX-License-Identifier: Apache-2.0
"""Draws of digits, with what is true of them and what is wrong in a plausible way.

Every draw is exchangeable: (answer, wrong) is as likely as (wrong, answer). So no rule that reads only the
answers beats chance, and a longer answer is not a better one.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

MISREADINGS = ("01 23 45 67 89", "17 38 49 56 02", "35 89 06 27 14")
"""Digits taken for each other: the next one, or one that looks alike. Each string pairs all ten digits, so
that a wrong digit is as likely to be any digit as a right one is."""
SUMS = range(1, 19)
"""Sums that are asked for; an even number of them, so that each has a partner."""
LENGTHS = (2, 2, 3, 3, 4)
"""Lengths of a row of digits, to choose from."""
TRUTHS = (True, False)


class Draw(NamedTuple):
    """Digits, and what is true and false of them.

    Attributes:
        digits: the digits to show, in order.
        answer: the right answer, bare.
        wrong: a plausible wrong answer.
        target: a digit or word that the question names, if any.
    """

    digits: tuple[int, ...]
    answer: str
    wrong: str
    target: str = ""


def misread(digit: int, random: Random) -> int:
    """Return a digit that is taken for ``digit``, and for which ``digit`` is taken as often."""
    pairs = random.choice(MISREADINGS).split()
    pair = next(pair for pair in pairs if str(digit) in pair)
    return int(pair.replace(str(digit), ""))


def verdict(
    digits: tuple[int, ...], truth: bool, target: str = "", words: tuple[str, str] = ("yes", "no")
) -> Draw:
    """Return a draw with two opposite answers; ``truth`` must have been a fair coin."""
    yes, no = words
    return Draw(digits, yes if truth else no, no if truth else yes, target)


def row(random: Random, longest: int) -> tuple[int, ...]:
    """Return two or more different digits."""
    return tuple(random.sample(range(10), random.choice([length for length in LENGTHS if length <= longest])))


def read(random: Random) -> Draw:
    """Which digit is it?"""
    digit = random.randrange(10)
    return Draw((digit,), str(digit), str(misread(digit, random)))


def parity(random: Random) -> Draw:
    """Is it even or odd?"""
    digit = random.randrange(10)
    return verdict((digit,), digit % 2 == 0, words=("even", "odd"))


def above_five(random: Random) -> Draw:
    """Is it larger than five?"""
    truth = random.choice(TRUTHS)
    return verdict((random.randint(6, 9) if truth else random.randint(0, 5),), truth)


def successor(random: Random) -> Draw:
    """What comes after it? The wrong answer comes after a digit that it is taken for."""
    digit = random.randrange(10)
    return Draw((digit,), str(digit + 1), str(misread(digit, random) + 1))


def total(random: Random) -> Draw:
    """What is the sum of two digits? All are as likely; a wrong one is one or two off, or has a wrong ten."""
    right = random.choice(SUMS)
    first = random.randint(max(0, right - 9), min(9, right))
    by_one = right + 1 if right % 2 else right - 1
    by_two = by_one if right > 16 else right + 2 if right % 4 in (1, 2) else right - 2
    by_ten = by_one if right in (9, 10) else right + 10 if right < 9 else right - 10
    return Draw((first, right - first), str(right), str(random.choice((by_one, by_one, by_two, by_ten))))


def which_place(random: Random) -> Draw:
    """Which of two digits is larger, or smaller: the first or the second?"""
    first, second = random.sample(range(10), 2)
    target = random.choice(("larger", "smaller"))
    return verdict(
        (first, second), (first > second) == (target == "larger"), target, words=("first", "second")
    )


def which_digit(random: Random) -> Draw:
    """Which of two digits is larger, or smaller? The answers give the digits away: for text only."""
    first, second = random.sample(range(10), 2)
    answers = str(max(first, second)), str(min(first, second))
    target = random.choice(("larger", "smaller"))
    return Draw((first, second), *(answers if target == "larger" else answers[::-1]), target)


def same(random: Random) -> Draw:
    """Are two digits the same?"""
    digit, truth = random.randrange(10), random.choice(TRUTHS)
    return verdict((digit, digit if truth else misread(digit, random)), truth)


def spell(random: Random, longest: int = 4) -> Draw:
    """Which digits are they, in order? The wrong row has one or more digits misread.

    Where a digit is taken for another one of the row, that one is taken for it too: the two are swapped, and
    the wrong row has no digit twice either.
    """
    digits = row(random, longest)
    partner = {int(pair[i]): int(pair[1 - i]) for pair in random.choice(MISREADINGS).split() for i in (0, 1)}
    places = {random.randrange(len(digits))} | {
        place for place in range(len(digits)) if random.choice(TRUTHS)
    }
    misreadings = {digits[place] for place in places} | {partner[digits[place]] for place in places}
    wrong = [partner[digit] if digit in misreadings else digit for digit in digits]
    return Draw(digits, " ".join(map(str, digits)), " ".join(map(str, wrong)))


def order(random: Random, longest: int = 4) -> Draw:
    """Which digits are they, in ascending or descending order? The wrong row has one of them misread.

    It is in the order asked for too: a row in the other order would be wrong whatever the pictures show.
    """
    seen, misread = map(int, random.sample(random.choice(random.choice(MISREADINGS).split()), 2))
    others = [digit for digit in range(10) if digit not in (seen, misread)]
    rest = random.sample(others, len(row(random, longest)) - 1)
    target = random.choice(("ascending", "descending"))
    right, wrong = (sorted([*rest, digit], reverse=target == "descending") for digit in (seen, misread))
    shown = random.sample(right, len(right))
    return Draw(tuple(shown), " ".join(map(str, right)), " ".join(map(str, wrong)), target)


def first(random: Random, longest: int = 4) -> Draw:
    """Which digit comes first?"""
    return _one_of(row(random, longest), 0, random)


def last(random: Random, longest: int = 4) -> Draw:
    """Which digit comes last?"""
    return _one_of(row(random, longest), -1, random)


def _one_of(digits: tuple[int, ...], place: int, random: Random) -> Draw:
    """Return a draw about one digit of a row; the wrong one is another digit of the row, or a misreading."""
    wrong = misread(digits[place], random)
    if wrong in digits or random.choice(TRUTHS):
        wrong = random.choice([digit for digit in digits if digit != digits[place]])
    return Draw(digits, str(digits[place]), str(wrong))


def count(random: Random) -> Draw:
    """How many digits are there? Two, three and four are as likely."""
    right, wrong = random.sample(sorted(set(LENGTHS)), 2)
    return Draw(tuple(random.sample(range(10), right)), str(right), str(wrong))


def contains(random: Random) -> Draw:
    """Is a certain digit among them?"""
    digits, truth = row(random, 4), random.choice(TRUTHS)
    target = random.choice([digit for digit in range(10) if (digit in digits) == truth])
    return verdict(digits, truth, str(target))


def rises(random: Random) -> Draw:
    """Is the last digit larger than the first?"""
    digits = row(random, 4)
    return verdict(digits, digits[-1] > digits[0])
