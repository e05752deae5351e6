# SPDX-License-Identifier: Apache-2.0
"""Learning-rate multipliers."""

import math

import pytest

from ixc_lightning.functional.schedule import warmup_cosine, warmup_linear

SCHEDULES = [warmup_cosine, warmup_linear]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_to_one_and_the_end_is_the_final_ratio(schedule):
    values = [schedule(step, total=10, warmup=4, final_ratio=0.1) for step in range(12)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[10:] == pytest.approx([0.1, 0.1])
    assert values[4:] == sorted(values[4:], reverse=True)


def test_half_way_down_by_hand():
    # three of six steps after the warm-up: cos(π/2) = 0 gives 1/2, two of six 1/2 (1 + cos(π/3)) = 3/4
    assert warmup_cosine(5, total=8, warmup=2, final_ratio=0.0) == pytest.approx(0.5)
    assert warmup_cosine(4, total=8, warmup=2, final_ratio=0.0) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 3))
    )
    assert warmup_linear(4, total=8, warmup=2, final_ratio=0.0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [10, 11, -1])
def test_a_warm_up_that_does_not_fit_is_refused(schedule, warmup):
    with pytest.raises(ValueError, match="warm-up"):
        schedule(0, total=10, warmup=warmup, final_ratio=0.0)
