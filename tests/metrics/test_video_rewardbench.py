# SPDX-License-Identifier: Apache-2.0
"""VideoRewardBench by hand: accuracy by category and over all triplets."""

import pytest

from ixc_lightning.metrics import VideoRewardBench
from tests.metrics.scored import CLOSE, figures, item, numbered


def test_categories_and_overall_by_hand():
    groups = {"long_perception": 1, "short_perception": 0, "knowledge": 1, "reasoning": 1, "safety": 0}
    items = numbered(*(item(group, float(right), 0.5) for group, right in groups.items()))
    items += numbered(item("safety", 1.0, 0.5))
    found = figures(VideoRewardBench(), items)
    assert found["official_safety"] == 1 / 2
    assert found["official_short_perception"] == 0
    assert found["official_overall"] == pytest.approx(4 / 6, abs=CLOSE)
    assert found["paper_overall"] == found["official_overall"]
