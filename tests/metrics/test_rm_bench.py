# SPDX-License-Identifier: Apache-2.0
"""RM-Bench by hand, and against a reference that counts the comparisons one by one."""

import random
from itertools import product

import pytest

from ixc_lightning.metrics import RMBench
from tests.metrics.scored import CLOSE, figures, item, numbered

LEVELS = ("easy", "normal", "hard")
PREFIXES = ("chat", "math", "code", "safety")


def test_one_item_by_hand():
    # chosen 3, 1, 2 against rejected 0, 1, 4:
    #   1 1 0     easy   = below the diagonal: 1, 1, 1
    #   1 0 0     normal = the diagonal:       1, 0, 0
    #   1 1 0     hard   = above it:           1, 0, 0
    found = figures(RMBench(), numbered(item("chat", (3.0, 1.0, 2.0), (0.0, 1.0, 4.0))))
    assert [found[f"paper_{level}"] for level in LEVELS] == pytest.approx([1.0, 1 / 3, 1 / 3], abs=CLOSE)
    assert found["paper_chat"] == pytest.approx(5 / 9, abs=CLOSE)
    # A domain is missing, so the official mean over the four does not exist.
    assert found["official_overall"] != found["official_overall"]


def test_a_tie_of_one_comparison_is_one_ninth_of_an_item():
    items = numbered(item("chat", (3.0, 1.0, 2.0), (0.0, 1.0, 4.0)))
    assert RMBench().results(items).item() == pytest.approx(5 / 9, abs=CLOSE)
    assert RMBench("half").results(items).item() == pytest.approx(5.5 / 9, abs=CLOSE)


def _reference(items):
    """Levels, domains and averages, comparison by comparison."""

    def level(of, wanted):
        kinds = {"easy": lambda i, j: i > j, "normal": lambda i, j: i == j, "hard": lambda i, j: i < j}
        wins = [
            one.chosen[i] > one.rejected[j]
            for one in of
            for i, j in product(range(3), range(3))
            if kinds[wanted](i, j)
        ]
        return sum(wins) / len(wins)

    domains = {name: [one for one in items if one.group.startswith(name)] for name in PREFIXES}
    expected = {}
    for name, of in domains.items():
        expected[f"official_{name}"] = sum(level(of, one) for one in LEVELS) / 3
        expected[f"paper_{name}"] = expected[f"official_{name}"]
    for one in LEVELS:
        expected[f"official_{one}"] = sum(level(of, one) for of in domains.values()) / 4
        expected[f"paper_{one}"] = level(items, one)
    for convention in ("official", "paper"):
        expected[f"{convention}_overall"] = sum(expected[f"{convention}_{one}"] for one in LEVELS) / 3
    return expected


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_the_reference(seed):
    draw = random.Random(seed)
    sizes = {"chat": 5, "math": 9, "code": 4, "safety-refuse": 6, "safety-response": 3}
    items = numbered(
        *(
            item(group, *([draw.choice([0.0, 1.0, 2.0]) for _ in range(3)] for _ in range(2)))
            for group, size in sizes.items()
            for _ in range(size)
        )
    )
    assert figures(RMBench(), items) == pytest.approx(_reference(items), abs=CLOSE)


def test_the_two_conventions_differ_where_domains_differ_in_size():
    right, wrong = ((1.0,) * 3, (0.0,) * 3), ((0.0,) * 3, (1.0,) * 3)
    items = numbered(
        *(item("math", *right) for _ in range(5)),
        *(item(group, *wrong) for group in ("chat", "code", "safety-refuse")),
    )
    found = figures(RMBench(), items)
    assert found["official_overall"] == pytest.approx(1 / 4, abs=CLOSE)
    assert found["paper_overall"] == pytest.approx(5 / 8, abs=CLOSE)
