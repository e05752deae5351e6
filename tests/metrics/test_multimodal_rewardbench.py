# SPDX-License-Identifier: Apache-2.0
"""Multimodal RewardBench by hand: categories, and the parts of two of them."""

import pytest

from ixc_lightning.metrics import MultimodalRewardBench
from tests.metrics.scored import CLOSE, figures, item, numbered


def test_categories_and_parts_by_hand():
    items = numbered(
        item("safety", 1.0, 0.0, subgroup="safety_bias"),
        item("safety", 0.0, 1.0, subgroup="safety_toxicity"),
        item("safety", 0.0, 1.0, subgroup="safety_toxicity"),
        item("knowledge", 1.0, 0.0),
        item("knowledge", 0.0, 0.0),
    )
    assert figures(MultimodalRewardBench(), items) == pytest.approx(
        {
            "official_knowledge": 1 / 2,
            "official_safety": 1 / 3,
            "official_safety_bias": 1.0,
            "official_safety_toxicity": 0.0,
            "official_overall": 2 / 5,
            "paper_overall": 2 / 5,
        },
        abs=CLOSE,
    )
