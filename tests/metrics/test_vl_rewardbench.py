# SPDX-License-Identifier: Apache-2.0
"""VL-RewardBench by hand, and from the counts that the paper's authors publish."""

import pytest

from ixc_lightning.metrics import VLRewardBench
from tests.metrics.scored import CLOSE, figures, item, numbered

SHOWN = 0.0051  # the figures have two decimals


def test_groups_overall_and_macro_by_hand():
    items = numbered(
        item("general", 1.0, 0.0),
        item("general", 0.0, 1.0),
        item("hallucination", 1.0, 0.0),
        item("hallucination", 2.0, 0.0),
        item("hallucination", 0.0, 0.0),
        item("reasoning", 0.0, 3.0),
    )
    # The tie is wrong officially, and half right in the paper's convention.
    assert figures(VLRewardBench(), items) == pytest.approx(
        {
            "official_general": 1 / 2,
            "official_hallucination": 2 / 3,
            "official_reasoning": 0.0,
            "official_overall": 3 / 6,
            "official_macro": (1 / 2 + 2 / 3 + 0) / 3,
            "paper_general": 1 / 2,
            "paper_hallucination": 2.5 / 3,
            "paper_reasoning": 0.0,
            "paper_overall": 3.5 / 6,
            "paper_macro": (1 / 2 + 2.5 / 3 + 0) / 3,
        },
        abs=CLOSE,
    )
    halves = figures(VLRewardBench("half"), items)
    assert halves["official_overall"] == pytest.approx(3.5 / 6, abs=CLOSE)


@pytest.mark.parametrize(
    ("hallucination", "expected"),
    [
        # from the authors' results, and from the one figure of their table that differs
        (452, (84.70, 60.35, 62.89, 64.56, 69.31)),
        (468, (84.70, 62.48, 62.89, 65.84, 70.03)),
    ],
)
def test_the_authors_counts_give_the_authors_figures(hallucination, expected):
    counts = {"general": (155, 183), "hallucination": (hallucination, 749), "reasoning": (200, 318)}
    items = numbered(
        *(item(group, float(n < right), 0.5) for group, (right, of) in counts.items() for n in range(of))
    )
    found = figures(VLRewardBench(), items)
    names = ("general", "hallucination", "reasoning", "overall", "macro")
    assert [100 * found[f"paper_{name}"] for name in names] == pytest.approx(expected, abs=SHOWN)


def test_the_paper_s_row_is_that_of_its_table():
    assert VLRewardBench.paper["IXC-2.5-Reward"] == {
        "general": 84.7,
        "hallucination": 62.5,
        "reasoning": 62.9,
        "overall": 65.8,
        "macro": 70.0,
    }
