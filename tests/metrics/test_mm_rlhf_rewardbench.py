# SPDX-License-Identifier: Apache-2.0
"""MM-RLHF-RewardBench by hand: a prompt is right where all its pairs are."""

import pytest

from ixc_lightning.metrics import MMRLHFRewardBench
from tests.metrics.scored import CLOSE, figures, item, numbered


def test_pairs_and_whole_prompts_by_hand():
    items = numbered(
        item("mcq", 1.0, 0.0, id="a"),
        item("mcq", 0.0, 1.0, id="a"),
        item("long", 1.0, 0.0, id="b"),
        item("long", 1.0, 0.0, id="b"),
        item("video", 0.5, 0.5, id="c"),
    )
    found = figures(MMRLHFRewardBench(), items)
    assert found["official_mcq"] == 0.5
    assert found["official_long"] == 1.0
    assert found["official_video"] == 0.0
    assert found["official_safety"] != found["official_safety"]  # there is none
    assert found["official_overall"] == pytest.approx(3 / 5, abs=CLOSE)
    # Of the prompts a, b, c only b is right throughout; a tie never is.
    assert found["official_plus"] == pytest.approx(1 / 3, abs=CLOSE)
    halves = figures(MMRLHFRewardBench("half"), items)
    assert halves["official_overall"] == pytest.approx(3.5 / 5, abs=CLOSE)
    assert halves["official_plus"] == pytest.approx(1 / 3, abs=CLOSE)


def test_the_pairs_of_a_prompt_are_resampled_together():
    unit = MMRLHFRewardBench().unit
    assert unit(item("mcq", 1.0, 0.0, id="a", row=0)) == unit(item("mcq", 1.0, 0.0, id="a", row=1))
