# SPDX-License-Identifier: Apache-2.0
"""The global order: complete, even, local, grouped by length where asked; a function alone."""

import pickle
from collections import Counter

import numpy as np
import pytest

from ixc_lightning.datamodules.order import BLOCK, FILL, Part, SequentialOrder, ShuffledSource, TrainingOrder

COUNTS = [7, 0, 5, 9, 1, 6]
SIZE = sum(COUNTS)


def whole(order, epoch=0):
    return order.records(epoch, np.arange(len(order))).tolist()


def test_every_record_comes_once_in_an_epoch():
    order = TrainingOrder([Part(COUNTS)], seed=0, window=2)
    assert len(order) == SIZE
    for epoch in range(3):
        assert sorted(whole(order, epoch)) == list(range(SIZE))


def test_epochs_and_seeds_differ_and_repeat():
    order = TrainingOrder([Part(COUNTS)], seed=0)
    assert whole(order, 0) != whole(order, 1)
    assert whole(order, 0) != whole(TrainingOrder([Part(COUNTS)], seed=1), 0)
    assert whole(order, 5) == whole(TrainingOrder([Part(COUNTS)], seed=0), 5)


def test_any_place_can_be_asked_for_alone():
    order = TrainingOrder([Part(COUNTS), Part([20])], seed=3, window=2, unit=4, pool=2, costs=lambda r: r % 5)
    everything = whole(order, 2)
    for place in np.random.default_rng(0).permutation(len(order)):
        assert order.records(2, np.array([place])).tolist() == [everything[place]]


def test_a_window_reads_few_shards_at_a_time():
    counts = [10] * 30
    order = ShuffledSource(counts, window=3, key=1)
    shards = order.records(np.arange(300)) // 10
    for start in range(0, 300, 30):
        assert len(set(shards[start : start + 30])) == 3
    assert len(set(shards[:10])) == 3  # mixed, not one after the other
    assert len(set(ShuffledSource(counts, window=99, key=1).records(np.arange(30)) // 10)) > 10


def test_many_shards_are_shuffled_block_by_block():
    counts = np.arange(2 * BLOCK + 11) % 3
    size, order = int(counts.sum()), ShuffledSource(counts, window=4, key=5)
    passes = order.records(np.arange(2 * size)).reshape(2, size)
    assert (np.sort(passes) == np.arange(size)).all()
    assert (passes[0] != passes[1]).mean() > 0.99
    shards = np.repeat(np.arange(len(counts)), counts)
    eighths = shards[passes[0]][:2000] * 8 // len(counts)
    assert len(np.unique(eighths)) == 8  # a block has shards from everywhere
    for places in np.random.default_rng(1).integers(0, 2 * size, (100, 8)):
        assert (ShuffledSource(counts, window=4, key=5).records(places) == passes.ravel()[places]).all()


def test_a_window_larger_than_a_block_mixes_all_it_is_to_mix():
    counts = np.full(BLOCK + 1000, 2)
    order = ShuffledSource(counts, window=len(counts), key=5)
    assert len(np.unique(order.records(np.arange(1000)) // 2)) > 800  # of one block, and not by shards
    assert (np.sort(order.records(np.arange(order.size))) == np.arange(order.size)).all()


def test_places_behind_the_end_are_filled():
    order = TrainingOrder([Part([3])], seed=0)
    assert order.records(0, np.array([2, 3, 4])).tolist()[1:] == [FILL, FILL]
    assert SequentialOrder(3).records(0, np.array([0, 2, 3])).tolist() == [0, 2, FILL]


def test_weights_are_passes_per_epoch():
    order = TrainingOrder([Part([10], weight=2.0), Part([8], weight=0.5)], seed=0)
    assert len(order) == 24
    epochs = [Counter(whole(order, epoch)) for epoch in range(4)]
    for epoch in epochs:
        assert all(epoch[record] == 2 for record in range(10))
        assert sum(epoch[record] for record in range(10, 18)) == 4
    for first, second in (epochs[:2], epochs[2:]):  # two halves make a pass
        assert all(first[record] + second[record] == 1 for record in range(10, 18))


def test_sources_take_turns_evenly():
    order = TrainingOrder([Part([60]), Part([30]), Part([10])], seed=0)
    source = np.digitize(whole(order), [60, 90])
    for start in range(0, 100, 10):
        assert np.bincount(source[start : start + 10], minlength=3).tolist() == pytest.approx(
            [6, 3, 1], abs=1
        )
    for prefix in range(1, 101):
        drawn = np.bincount(source[:prefix], minlength=3)
        assert np.abs(drawn - prefix * np.array([0.6, 0.3, 0.1])).max() < 1.5


def test_units_come_from_one_source_each():
    """As the released training has it: two batches with pictures to one of text."""
    order = TrainingOrder([Part([16]), Part([7])], seed=0, mix="units", unit=4)
    units = np.array(whole(order)).reshape(-1, 4)
    assert len(units) == 6
    sources = ["a" if unit.max() < 16 else "b" for unit in units]
    assert Counter(sources) == {"a": 4, "b": 2}
    assert sources != sorted(sources)
    for unit, source in zip(units, sources, strict=True):
        assert source == "a" or (unit[unit != FILL] >= 16).all()
    assert sorted(units[units != FILL]) == list(range(23))
    assert (units == FILL).sum() == 1


@pytest.mark.parametrize("mix", ["samples", "units"])
def test_grouping_by_length_moves_samples_inside_their_pool_only(mix):
    parts = [Part([40, 45]), Part([30])]
    lengths = np.random.default_rng(0).integers(5, 500, 115)
    options = {"seed": 0, "mix": mix, "unit": 4}
    plain = TrainingOrder(parts, **options)
    grouped = TrainingOrder(parts, **options, pool=8, costs=lambda records: lengths[records])
    before, behind = whole(plain), whole(grouped)
    assert before != behind
    assert len(before) == len(behind)
    for start in range(0, len(before), 32):
        assert sorted(before[start : start + 32]) == sorted(behind[start : start + 32])

    def spread(records):
        units = [[lengths[r] for r in records[i : i + 4] if r != FILL] for i in range(0, len(records), 4)]
        return np.mean([max(unit) - min(unit) for unit in units])

    assert spread(behind) < spread(before) / 3
    if mix == "units":
        units = [{r >= 85 for r in behind[i : i + 4] if r != FILL} for i in range(0, len(behind), 4)]
        assert all(len(unit) == 1 for unit in units)


def test_the_units_of_a_pool_are_not_sorted_by_length():
    grouped = TrainingOrder([Part([256])], seed=0, unit=4, pool=64, costs=lambda records: records)
    means = np.array(whole(grouped)).reshape(-1, 4).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.4


def test_an_order_travels_to_workers():
    order = TrainingOrder([Part(COUNTS)], seed=0, unit=4, pool=2, costs=np.asarray)
    assert whole(pickle.loads(pickle.dumps(order)), 1) == whole(order, 1)


def test_memory_and_time_do_not_grow_with_the_samples():
    order = TrainingOrder([Part([10**6] * 1000)], seed=0)
    first = order.records(0, np.arange(64))
    late = order.records(0, np.arange(10**9 - 64, 10**9))
    assert len(set(first.tolist()) | set(late.tolist())) == 128
