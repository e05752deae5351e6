# SPDX-License-Identifier: Apache-2.0
"""Batches by tokens: full, never too full, each sample once, the same for all ranks and after every stop."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.datamodules.budget import TokenBudget
from ixc_lightning.datamodules.lengths import UNUSABLE, Lengths
from ixc_lightning.datamodules.order import FILL, Part, SequentialOrder, TrainingOrder
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.datamodules.steps import BLOCK, BudgetedSteps, CountedSteps

LAYOUTS = ("trees", "padded")


class Numbers(ShardDataset):
    """So many records, which nobody reads."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


class Known(Lengths):
    """Lengths that are given: of the prompts, whose only response is empty."""

    def __init__(self, lengths):
        self.rows = np.stack([lengths, np.zeros_like(lengths)], axis=1).astype(np.int32)

    def of(self, indices):
        return self.rows[indices]

    def __setstate__(self, state):
        self.__dict__.update(state)


def budget_of(lengths, tokens, layout="trees", **options):
    lengths = np.asarray(lengths)
    return TokenBudget(tokens, Numbers(len(lengths)), Known(lengths), layout=layout, **options)


def batches(steps, start=0):
    """Places of the batch of each rank, step by step, to the end of the epoch."""
    found = []
    for _ in range(steps.count(start)):
        found.append([steps.share(start, rank) for rank in range(steps.world_size)])
        start = steps.end(start)
    assert start == steps.epoch_end(start - 1)
    return found


def test_batches_of_an_example_by_hand():
    lengths, order = [5, 3, 2, 9, 1, 1, 4, 6], SequentialOrder(8)
    one = BudgetedSteps(order, 1, budget_of(lengths, 10))
    # 5+3+2, 9+1, 1+4, 6: the next one would make them 19, 11 and 11
    assert batches(one) == [[(0, 3)], [(3, 5)], [(5, 7)], [(7, 8)]]
    three = BudgetedSteps(order, 3, budget_of(lengths, 10))
    assert batches(three) == [[(0, 3), (3, 5), (5, 7)], [(7, 8), (8, 8), (8, 8)]]
    assert [three.end(0), three.end(7)] == [7, 8]


def test_padded_batches_of_an_example_by_hand():
    lengths, order = [5, 3, 2, 9, 1, 1, 4, 6], SequentialOrder(8)
    steps = BudgetedSteps(order, 1, budget_of(lengths, 10, "padded"))
    # two rows of 5; 2 alone, as two rows of 9 are 18; 9 alone; 1, 1; 4; 6, as two rows of 6 are 12
    assert batches(steps) == [[(0, 2)], [(2, 3)], [(3, 4)], [(4, 6)], [(6, 7)], [(7, 8)]]


def test_what_cannot_be_used_takes_nothing_and_holds_nothing_up():
    lengths = [4, UNUSABLE, 99, 4, 4]
    for layout in LAYOUTS:
        steps = BudgetedSteps(SequentialOrder(5), 1, budget_of(lengths, 8, layout))
        assert batches(steps) == [[(0, 4)], [(4, 5)]]
    limited = budget_of(lengths, 8, max_tokens=3)
    assert limited.costs(np.arange(5)).tolist() == [0] * 5
    assert (limited.num_unusable, limited.first_unusable) == (5, 0)


def test_places_that_hold_no_record_take_nothing():
    order = TrainingOrder([Part([5]), Part([4])], seed=0, mix="units", unit=4)
    assert (order.records(0, np.arange(len(order))) == FILL).sum() == 3
    steps = BudgetedSteps(order, 2, budget_of([3] * 9, 6))
    assert sum(map(len, batches(steps))) >= 5


def test_a_batch_may_reach_over_the_blocks_that_are_looked_up():
    lengths, order = np.full(3 * BLOCK, 1), SequentialOrder(3 * BLOCK)
    steps = BudgetedSteps(order, 1, budget_of(lengths, 2 * BLOCK + 1))
    assert batches(steps) == [[(0, 2 * BLOCK + 1)], [(2 * BLOCK + 1, 3 * BLOCK)]]


def test_steps_by_number_end_with_their_epoch():
    steps = CountedSteps(SequentialOrder(10), 2, 3)
    assert batches(steps) == [[(0, 3), (3, 6)], [(6, 9), (9, 10)]]
    assert batches(steps, start=10) == [[(10, 13), (13, 16)], [(16, 19), (19, 20)]]
    assert [steps.count(start) for start in (0, 5, 6, 9, 10)] == [2, 1, 1, 1, 2]


cases = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 50), min_size=1, max_size=60),
        "tokens": st.integers(50, 200),
        "layout": st.sampled_from(LAYOUTS),
        "seed": st.integers(0, 99),
        "pool": st.sampled_from([0, 1, 3]),
        "epoch": st.integers(0, 2),
    }
)


def made(case, world):
    lengths = np.array(case["lengths"])
    budget = budget_of(lengths, case["tokens"], case["layout"])
    order = TrainingOrder(
        [Part([len(lengths)])],
        seed=case["seed"],
        unit=4,
        pool=case["pool"],
        costs=budget.costs,
        cut="costs",
    )
    return order, BudgetedSteps(order, world, budget), lengths


@given(case=cases, world=st.sampled_from([1, 2, 4]))
def test_each_sample_comes_once_and_no_batch_is_too_full_nor_could_take_the_next_one(case, world):
    order, steps, lengths = made(case, world)
    start = case["epoch"] * len(order)
    shares = [share for step in batches(steps, start) for share in step]
    assert [place for first, stop in shares for place in range(first, stop)] == list(
        range(start, start + len(order))
    )
    records = order.records(case["epoch"], np.arange(len(order)))
    assert sorted(records) == list(range(len(lengths)))

    def held(first, stop):
        chosen = lengths[records[np.arange(first, stop) - start]]
        return chosen.sum() if case["layout"] == "trees" else len(chosen) * chosen.max(initial=0)

    for first, stop in shares:
        assert held(first, stop) <= case["tokens"]
        if first < stop < start + len(order):
            assert held(first, stop + 1) > case["tokens"]


@given(case=cases, worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=8))
def test_ranks_that_come_and_go_see_the_batches_of_one_that_stays(case, worlds):
    _, alone, _ = made(case, 1)
    expected = [share for (share,) in batches(alone)]
    start, seen = 0, []
    while start < alone.epoch_end(0):
        _, steps, _ = made(case, worlds[len(seen) % len(worlds)])
        seen += [steps.share(start, rank) for rank in range(steps.world_size)]
        start = steps.end(start)
    assert [share for share in seen if share[0] < share[1]] == expected


@given(case=cases, cursor=st.integers(0, 59), tokens=st.integers(50, 200))
def test_a_run_goes_on_with_another_budget_from_any_place(case, cursor, tokens):
    order, _, lengths = made(case, 1)
    cursor %= len(order)
    other = BudgetedSteps(order, 2, budget_of(lengths, tokens, case["layout"]))
    places = [
        place for step in batches(other, cursor) for first, stop in step for place in range(first, stop)
    ]
    assert places == list(range(cursor, len(order)))


def test_units_of_like_cost_hold_more_short_samples_than_long_ones():
    lengths = np.random.default_rng(0).permutation(np.repeat([1, 10], 40))
    order = TrainingOrder(
        [Part([80])], seed=0, unit=10, pool=8, costs=lambda records: lengths[records], cut="costs"
    )
    found = lengths[order.records(0, np.arange(80))]
    runs = np.diff(np.flatnonzero(np.diff(found, prepend=0, append=0)))
    # 440 tokens in eight units of 55: all 40 short ones and one or two long ones are the first of them
    assert runs.max() >= 40
    assert sorted(found) == sorted(lengths)
    plain = TrainingOrder([Part([80])], seed=0, unit=10, pool=8, costs=lambda records: lengths[records])
    assert plain.fingerprint != order.fingerprint


@pytest.mark.parametrize("steps", ["counted", "budgeted"])
def test_steps_travel_to_workers(steps):
    order = SequentialOrder(20)
    made = (
        CountedSteps(order, 2, 3)
        if steps == "counted"
        else BudgetedSteps(order, 2, budget_of(range(1, 21), 40))
    )
    made.share(0, 1)
    assert batches(pickle.loads(pickle.dumps(made))) == batches(made)
