# SPDX-License-Identifier: Apache-2.0
"""What holds for the figures of every benchmark: weights are repetitions, order is nothing, NaN is wrong."""

import random

import pytest
import torch

from ixc_lightning.metrics import (
    MMRLHFRewardBench,
    MultimodalRewardBench,
    RewardBench,
    RewardBench2,
    RMBench,
    VideoRewardBench,
    VLRewardBench,
)
from ixc_lightning.metrics.benchmark import pair_results
from ixc_lightning.metrics.rewardbench import PRIOR_SETS, SECTIONS
from tests.metrics.scored import CLOSE, NAN, figures, item, numbered

SUBSETS = [subset for tests in SECTIONS.values() for subset in tests]


def _pairs(groups, seed=0, count=4):
    draw = random.Random(seed)
    return numbered(
        *(
            item(group, draw.choice([0.0, 0.5, 1.0]), draw.choice([0.0, 0.5]), id=f"{group}-{n // 2}")
            for group in groups
            for n in range(count)
        )
    )


def _rm_bench(seed=0):
    draw = random.Random(seed)
    groups = ["chat", "math", "code", "safety-refuse", "safety-response"] * 3
    triples = [[[draw.choice([0.0, 0.5, 1.0]) for _ in range(3)] for _ in range(2)] for _ in groups]
    return numbered(*(item(group, *triple) for group, triple in zip(groups, triples, strict=True)))


def _rewardbench_2(seed=0):
    draw = random.Random(seed)

    def scores(count):
        return [draw.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(count)]

    best_of = [
        item(group, scores(1), scores(3))
        for group in ("factuality", "precise_if", "math", "safety", "focus")
        for _ in range(3)
    ]
    ties = [
        item("ties", scores(1 if form == "ref" else 4), [-0.5, draw.choice([-0.25, 0.5])], id=f"{form}:{n}")
        for n in range(5)
        for form in ("ref", "tied")
    ]
    return numbered(*best_of, *ties)


def _multimodal():
    items = _pairs(["safety", "reasoning", "knowledge"])
    return [
        one._replace(subgroup="" if one.group == "knowledge" else f"{one.group}_{one.row % 2}")
        for one in items
    ]


BENCHMARKS = [
    (VLRewardBench, _pairs(["general", "hallucination", "reasoning"])),
    (RewardBench, _pairs([*SUBSETS, *PRIOR_SETS])),
    (RMBench, _rm_bench()),
    (RewardBench2, _rewardbench_2()),
    (MultimodalRewardBench, _multimodal()),
    (MMRLHFRewardBench, _pairs(["mcq", "long", "short", "safety", "video"])),
    (VideoRewardBench, _pairs(["long_perception", "short_perception", "knowledge", "reasoning", "safety"])),
]
each_benchmark = pytest.mark.parametrize(
    ("benchmark", "items"), BENCHMARKS, ids=lambda x: getattr(x, "name", "")
)


@each_benchmark
def test_every_figure_has_a_convention_and_is_a_share(benchmark, items):
    found = figures(benchmark(), items)
    assert {name.partition("_")[0] for name in found} == {"official", "paper"}
    assert {"official_overall", "paper_overall"} <= set(found)
    assert all(0 <= value <= 1.01 for value in found.values()), found


@each_benchmark
def test_the_order_of_the_items_does_not_matter(benchmark, items):
    shuffled = random.Random(1).sample(items, len(items))
    assert figures(benchmark(), shuffled) == pytest.approx(figures(benchmark(), items), abs=CLOSE)


@each_benchmark
def test_a_weight_counts_as_so_many_copies(benchmark, items):
    # Weights by unit, as resampling gives them; the copies of a unit are units of their own.
    times = {benchmark().unit(one): 1 + number % 3 for number, one in enumerate(items)}
    weights = torch.tensor([[float(times[benchmark().unit(one)]) for one in items]], dtype=torch.float64)
    copies = [
        one._replace(id=_renamed(one.id, copy), row=one.row + 1000 * copy)
        for copy in range(3)
        for one in items
        if copy < times[benchmark().unit(one)]
    ]
    weighted = {name: value.item() for name, value in benchmark().figures(items, weights).items()}
    assert figures(benchmark(), copies) == pytest.approx(weighted, abs=CLOSE)


def _renamed(name, copy):
    return f"{name}{copy}" if ":" in name else f"{name}#{copy}"


@each_benchmark
def test_sets_of_weights_do_not_touch_each_other(benchmark, items):
    weights = torch.ones(3, len(items), dtype=torch.float64)
    weights[1] = 2.0
    for name, value in benchmark().figures(items, weights).items():
        assert value.tolist() == pytest.approx([value[0].item()] * 3, abs=CLOSE), name


@each_benchmark
def test_a_right_model_has_all_and_a_wrong_one_nothing(benchmark, items):
    right = [
        one._replace(chosen=(2.0,) * len(one.chosen), rejected=(1.0,) * len(one.rejected)) for one in items
    ]
    wrong = [
        one._replace(chosen=one.rejected[:1] * len(one.chosen), rejected=(9.0,) * len(one.rejected))
        for one in items
    ]
    assert all(value >= 1 - CLOSE for value in figures(benchmark(), right).values())
    assert all(abs(value) <= 0.011 for value in figures(benchmark(), wrong).values())


@each_benchmark
def test_scores_that_are_no_number_are_wrong(benchmark, items):
    broken = [one._replace(chosen=(NAN,) * len(one.chosen)) for one in items]
    assert all(abs(value) <= CLOSE for value in figures(benchmark("half"), broken).values())
    assert benchmark("half").results(broken).abs().max() == 0


@each_benchmark
def test_the_mean_result_over_items_is_the_paper_s_average_without_ties(benchmark, items):
    kept = [
        one._replace(chosen=tuple(score + 0.125 for score in one.chosen))
        for one in items
        if one.group not in PRIOR_SETS
    ]
    assert not any(one.num_ties for one in kept)
    assert figures(benchmark(), kept)["paper_overall"] == pytest.approx(
        benchmark().results(kept).mean().item(), abs=CLOSE
    )


def test_a_pair_by_hand():
    items = numbered(item("x", 1.0, 0.5), item("x", 0.5, 1.0), item("x", 0.5, 0.5), item("x", NAN, NAN))
    assert pair_results(items, tie=0.5).tolist() == [1.0, 0.0, 0.5, 0.0]
    assert [one.num_ties for one in items] == [0, 0, 1, 0]
