# SPDX-License-Identifier: Apache-2.0
"""RewardBench by hand, against a reference with its fixed weights, and against the official function."""

import random

import pytest

from ixc_lightning.metrics import RewardBench
from ixc_lightning.metrics.rewardbench import PRIOR_SETS, SECTIONS
from tests.metrics.rewardbench_oracle import official
from tests.metrics.scored import CLOSE, figures, item, numbered

NAMES = {"Chat": "chat", "Chat Hard": "chat_hard", "Safety": "safety", "Reasoning": "reasoning"}


def _drawn(seed, groups=None, most=7):
    """Some items of every subset, right, wrong or tied at random."""
    draw = random.Random(seed)
    groups = groups or [subset for tests in SECTIONS.values() for subset in tests]
    return numbered(
        *(
            item(group, draw.choice([0.0, 1.0, 2.0]), draw.choice([0.0, 1.0]))
            for group in groups
            for _ in range(draw.randint(1, most))
        )
    )


def _accuracies(items):
    groups = {one.group for one in items}
    of = {group: [one.chosen > one.rejected for one in items if one.group == group] for group in groups}
    return {group: sum(right) / len(right) for group, right in of.items()}


def test_the_weights_are_those_of_the_release():
    sizes = {section: sum(tests.values()) for section, tests in SECTIONS.items()}
    assert sizes == {"chat": 358, "chat_hard": 456, "safety": 740, "reasoning": 1968}
    # mathematics counts as all of code together, though it has 447 items: 2,985 in all
    assert SECTIONS["reasoning"]["math-prm"] == 6 * 164
    assert sum(sizes.values()) - 984 + 447 == RewardBench.sizes[0]


def test_a_section_by_hand_in_both_conventions():
    items = numbered(
        *(item("math-prm", float(n < 3), 0.5) for n in range(4)),
        *(item(f"hep-{name}", 0.0, 1.0) for name in ("cpp", "go", "java", "js", "python", "rust")),
    )
    found = figures(RewardBench(), items)
    assert found["official_reasoning"] == pytest.approx(0.75 / 2, abs=CLOSE)
    assert found["paper_reasoning"] == pytest.approx(3 / 10, abs=CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_the_reference(seed):
    items = _drawn(seed)
    accuracies = _accuracies(items)
    expected = {}
    for section, tests in SECTIONS.items():
        weighted = sum(accuracies[name] * weight for name, weight in tests.items())
        expected[f"official_{section}"] = weighted / sum(tests.values())
        own = [one.chosen > one.rejected for one in items if one.group in tests]
        expected[f"paper_{section}"] = sum(own) / len(own)
    expected["official_overall"] = sum(expected[f"official_{section}"] for section in SECTIONS) / 4
    expected["paper_overall"] = sum(one.chosen > one.rejected for one in items) / len(items)
    assert figures(RewardBench(), items) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_the_sections_are_those_of_the_official_function(seed):
    there = official()
    items = _drawn(seed)
    sections = there.calculate_scores_per_section(
        there.EXAMPLE_COUNTS, there.SUBSET_MAPPING, _accuracies(items)
    )
    found = figures(RewardBench(), items)
    assert {NAMES[name]: value for name, value in sections.items()} == pytest.approx(
        {section: found[f"official_{section}"] for section in SECTIONS}, abs=CLOSE
    )


def test_prior_sets_weigh_half_a_section_and_leave_the_rest_as_it_is():
    core, prior = _drawn(0), _drawn(1, groups=PRIOR_SETS)
    found, without = figures(RewardBench(), [*core, *prior]), figures(RewardBench(), core)
    accuracies = _accuracies(prior)
    mean = sum(accuracies.values()) / 4
    assert found.pop("official_prior_sets") == pytest.approx(mean, abs=CLOSE)
    # weights 2, 2, 2, 2, 1
    expected = (2 * sum(without[f"official_{section}"] for section in SECTIONS) + mean) / 9
    assert found.pop("official_with_prior_sets") == pytest.approx(expected, abs=CLOSE)
    assert found == pytest.approx(without, abs=CLOSE)


def test_a_missing_subset_leaves_its_section_to_the_others():
    items = [one for one in _drawn(0) if one.group != "math-prm"]
    accuracies = _accuracies(items)
    hep = [accuracies[name] for name in SECTIONS["reasoning"] if name != "math-prm"]
    assert figures(RewardBench(), items)["official_reasoning"] == pytest.approx(sum(hep) / 6, abs=CLOSE)
