# SPDX-License-Identifier: Apache-2.0
"""The schedulers follow the functions that they are named after, from the first step to past the last."""

import pickle

import pytest
import torch
from torch.optim import SGD

from ixc_lightning.functional.schedule import warmup_cosine, warmup_linear
from ixc_lightning.modules import WarmupCosineLR, WarmupLinearLR

BASE = 0.5
SHAPE = {"warmup": 2, "final_ratio": 0.1}

BOTH = pytest.mark.parametrize(
    ("scheduler", "multiplier"), [(WarmupCosineLR, warmup_cosine), (WarmupLinearLR, warmup_linear)]
)


def _rates(scheduler, steps, **options):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    schedule = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@BOTH
def test_the_learning_rate_is_the_multiple_of_every_step(scheduler, multiplier):
    rates = _rates(scheduler, 8, total_steps=6, warmup_steps=2, final_ratio=0.1)
    assert rates == pytest.approx([BASE * multiplier(step, total=6, **SHAPE) for step in range(8)])


@BOTH
def test_the_learning_rate_stays_at_its_end_past_the_last_step(scheduler, multiplier):
    rates = _rates(scheduler, 9, total_steps=6, final_ratio=0.1)
    assert rates[6:] == pytest.approx([BASE * 0.1] * 3)


@BOTH
def test_the_state_is_plain_data(scheduler, multiplier):
    schedule = scheduler(SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE), total_steps=6)
    assert pickle.loads(pickle.dumps(schedule.state_dict()))["lr_lambdas"] == [None]


@BOTH
def test_a_warm_up_longer_than_the_run_is_refused(scheduler, multiplier):
    with pytest.raises(ValueError, match="warm-up of 6 steps"):
        _rates(scheduler, 1, total_steps=6, warmup_steps=6)
