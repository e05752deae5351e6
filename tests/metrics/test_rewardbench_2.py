# SPDX-License-Identifier: Apache-2.0
"""RewardBench 2 by hand, against a plain reference of its ties, and against the official functions."""

import math
import random

import numpy as np
import pytest
import torch

from ixc_lightning.metrics import RewardBench2
from ixc_lightning.metrics.rewardbench_2 import ties_score
from tests.metrics.rewardbench_oracle import official
from tests.metrics.scored import CLOSE, figures, item, numbered


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (3.0, (1.0, 2.0, 0.0), 1.0),
        (3.0, (3.0, 2.0, 0.0), 1 / 2),
        (3.0, (3.0, 3.0, 3.0), 1 / 4),
        (3.0, (3.0, 4.0, 0.0), 0.0),
    ],
)
def test_best_of_four_by_hand(chosen, rejected, expected):
    assert RewardBench2().results(numbered(item("math", chosen, rejected))).item() == expected


def _score(*items):
    return ties_score(items, torch.ones(1, len(items), dtype=torch.float64)).item()


def test_ties_by_hand():
    # Number 0: m_ref = 3 − 1 = 2; tied: right 4 and 5, wrong 2: m = 2, w = 1; both margins exceed w.
    # Number 1: m_ref = −1; tied: right 3 and 6, wrong 2: m = 1, w = 3; none does.
    items = (
        item("ties", 3.0, 1.0, id="ref:0"),
        item("ties", (4.0, 5.0), 2.0, id="tied:0"),
        item("ties", 0.0, 1.0, id="ref:1"),
        item("ties", (6.0, 3.0), (2.0, 1.0), id="tied:1"),
    )
    lead = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 3 - 1)) / 2
    expected = 0.3 * 1 + 0.3 * 1 / 2 + 0.2 * 1 / 2 + 0.2 * 1 / 2 + 0.01 * lead
    assert _score(*items) == pytest.approx(expected, abs=CLOSE)


def test_right_answers_that_are_all_equal_have_no_width_to_divide_by():
    items = (item("ties", 3.0, 1.0, id="ref:0"), item("ties", (4.0, 4.0), 2.0, id="tied:0"))
    assert _score(*items) == pytest.approx(1.0, abs=CLOSE)


def test_a_prompt_without_its_other_form_counts_for_accuracy_alone():
    items = (
        item("ties", 3.0, 1.0, id="ref:0"),
        item("ties", (4.0, 4.0), 2.0, id="tied:0"),
        item("ties", 0.0, 1.0, id="ref:7"),
    )
    assert _score(*items) == pytest.approx(0.3 + 0.3 / 2 + 0.2 + 0.2, abs=CLOSE)


def _drawn(seed, numbers=12):
    draw = random.Random(seed)
    items = []
    for number in range(numbers):
        for form in ("ref", "tied"):
            right = [
                round(draw.gauss(0.8, 0.5), 1) for _ in range(1 if form == "ref" else draw.randint(2, 5))
            ]
            wrong = [round(draw.gauss(0, 0.5), 1) for _ in range(draw.randint(1, 4))]
            items.append(item("ties", right, wrong, id=f"{form}:{number}"))
    return numbered(*items)


def _reference(items):
    """The score of the ties, prompt by prompt."""
    stats = {}
    for one in items:
        form, number = one.id.split(":")
        margin = min(one.chosen) - max(one.rejected)
        width = max(one.chosen) - min(one.chosen) if len(one.chosen) > 1 else None
        stats.setdefault(number, {})[form] = (margin > 0, margin, width)

    def accuracy(form):
        return np.mean([forms[form][0] for forms in stats.values() if form in forms])

    both = [forms for forms in stats.values() if len(forms) == 2]
    wide = [
        (forms["tied"][1], forms["ref"][1], forms["tied"][2])
        for forms in both
        if forms["tied"][2] is not None
    ]
    leads = [math.tanh(min(tied, ref) / width - 1) for tied, ref, width in wide if width > 0]
    return (
        0.3 * accuracy("tied")
        + 0.3 * accuracy("ref")
        + 0.2 * np.mean([tied > width for tied, _, width in wide])
        + 0.2 * np.mean([min(tied, ref) > width for tied, ref, width in wide])
        + 0.01 * np.mean(leads)
    )


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_those_of_the_reference(seed):
    items = _drawn(seed)
    assert _score(*items) == pytest.approx(_reference(items), abs=CLOSE)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_those_of_the_official_function(seed):
    items = _drawn(seed)
    rows = [
        {
            "id": one.id,
            "scores": [[score] for score in one.chosen + one.rejected],
            "num_correct": len(one.chosen),
        }
        for one in items
    ]
    assert _score(*items) == pytest.approx(official().process_single_model(rows)[1], abs=CLOSE)


def test_best_of_four_is_that_of_the_official_function():
    there, draw = official(), random.Random(0)
    import datasets

    items = numbered(
        *(item("math", draw.randint(0, 3), [draw.randint(0, 3) for _ in range(3)]) for _ in range(40))
    )
    scores = [float(score) for one in items for score in one.chosen + one.rejected]
    rows = datasets.Dataset.from_dict({"text": [str(score) for score in scores], "scores": scores})
    expected = list(there.reroll_and_score_dataset(rows, [4] * 40)["results"])
    assert RewardBench2().results(items).tolist() == pytest.approx(expected, abs=CLOSE)


def test_the_overall_score_is_the_mean_of_six_and_the_paper_s_that_of_all_items():
    subsets = ("factuality", "precise_if", "math", "safety", "focus")
    best_of = [item(group, float(n), (1.5, 0.0, 0.0)) for n, group in enumerate(subsets)]
    items = numbered(*best_of, *_drawn(0))
    found = figures(RewardBench2(), items)
    assert found["official_math"] == 1.0
    six = [0.0, 0.0, 1.0, 1.0, 1.0, _reference(items[5:])]
    assert found["official_overall"] == pytest.approx(sum(six) / 6, abs=CLOSE)
    accurate = sum(min(one.chosen) > max(one.rejected) for one in items[5:])
    assert found["paper_overall"] == pytest.approx((3 + accurate) / len(items), abs=CLOSE)
