# SPDX-License-Identifier: Apache-2.0
"""The statistics of preference pairs, against hand-computed values and a float64 reference over all pairs."""

import numpy as np
import pytest
import torch

from ixc_lightning.metrics import PreferenceStatistics
from ixc_lightning.types import MODALITIES

CLOSE = 1e-5  # float32 sums over a hundred numbers of order 10
DOMAINS = ["arithmetic", "comparison", "reading"]
PAIRS = 100
MOMENTS = {f"{side}_{moment}" for side in ("chosen", "rejected", "score") for moment in ("mean", "std")}
OVERALL = {"accuracy", "margin", "length_correlation", "longer_wins", *MOMENTS}


def pairs(count=PAIRS, seed=0):
    """Scores, lengths, domains and modalities at random; some ties, and lengths that agree in some pairs."""
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(1, 3, count), rng.normal(0, 2, count)
    rejected[::7] = chosen[::7]
    lengths = rng.integers(1, 9, (2, count))
    groups = rng.integers(0, len(DOMAINS), count), rng.integers(0, len(MODALITIES), count)
    return (
        torch.tensor(chosen, dtype=torch.float32),
        torch.tensor(rejected, dtype=torch.float32),
        *(torch.tensor(column) for column in (*lengths, *groups)),
    )


def rows(columns, index):
    return tuple(column[index] for column in columns)


def computed(*batches):
    metric = PreferenceStatistics(DOMAINS)
    for batch in batches:
        metric.update(*batch)
    return {name: float(value) for name, value in metric.compute().items()}


def _reference(columns):
    """Every statistic pair by pair in float64."""
    chosen, rejected, chosen_length, rejected_length, domain, modality = (
        column.double().numpy() for column in columns
    )
    correct = [float(c > r) for c, r in zip(chosen, rejected, strict=True)]
    longer = chosen_length - rejected_length
    wins = [(c - r) * d > 0 for c, r, d in zip(chosen, rejected, longer, strict=True) if d != 0]
    expected = {
        "accuracy": np.mean(correct),
        "margin": np.mean(chosen - rejected),
        "length_correlation": np.corrcoef(chosen - rejected, longer)[0, 1],
        "longer_wins": np.mean(wins),
    }
    for side, values in (("chosen", chosen), ("rejected", rejected), ("score", np.r_[chosen, rejected])):
        expected |= {
            f"{side}_mean": values.mean(),
            f"{side}_std": np.sqrt(np.mean((values - values.mean()) ** 2)),
        }
    for kind, names, ids in (("domain", DOMAINS, domain), ("modality", MODALITIES, modality)):
        for number, name in enumerate(names):
            group = [c for c, g in zip(correct, ids, strict=True) if g == number]
            expected |= {f"{kind}_accuracy/{name}": np.mean(group)} if group else {}
    return expected


def test_three_pairs_by_hand():
    statistics = computed(
        (
            torch.tensor([2.0, 0.0, 1.0]),
            torch.tensor([1.0, 3.0, 1.0]),
            torch.tensor([5, 5, 5]),
            torch.tensor([4, 4, 5]),
            torch.tensor([0, 0, 2]),
            torch.tensor([1, 0, 1]),
        )
    )
    # The first pair is right, the second wrong, the tie wrong.
    assert statistics["accuracy"] == pytest.approx(1 / 3, abs=CLOSE)
    assert statistics["domain_accuracy/arithmetic"] == 0.5
    assert statistics["domain_accuracy/reading"] == 0.0
    assert statistics["modality_accuracy/image"] == 0.5
    assert statistics["modality_accuracy/text"] == 0.0
    # (1 − 3 + 0)/3; (2 + 0 + 1)/3; (1 + 3 + 1)/3; all six together 8/6
    assert statistics["margin"] == pytest.approx(-2 / 3, abs=CLOSE)
    assert statistics["chosen_mean"] == pytest.approx(1.0, abs=CLOSE)
    assert statistics["rejected_mean"] == pytest.approx(5 / 3, abs=CLOSE)
    assert statistics["score_mean"] == pytest.approx(4 / 3, abs=CLOSE)
    # √((1 + 1 + 0)/3)
    assert statistics["chosen_std"] == pytest.approx((2 / 3) ** 0.5, abs=CLOSE)
    # Of the two pairs of unequal length, the longer response wins one.
    assert statistics["longer_wins"] == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_several_updates_agree_with_the_float64_reference(seed):
    columns = pairs(seed=seed)
    assert computed(
        *(rows(columns, slice(start, start + 30)) for start in range(0, PAIRS, 30))
    ) == pytest.approx(_reference(columns), abs=CLOSE)


@pytest.mark.parametrize("size", [1, 7, PAIRS])
def test_the_split_into_batches_does_not_matter(size):
    columns = pairs()
    batches = [rows(columns, slice(start, start + size)) for start in range(0, PAIRS, size)]
    assert computed(*batches) == pytest.approx(computed(columns), abs=CLOSE)


def test_the_order_of_pairs_does_not_matter():
    columns = pairs()
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    assert computed(rows(columns, order)) == pytest.approx(computed(columns), abs=CLOSE)


def test_only_groups_that_occur_are_reported():
    columns = pairs()
    some = (*columns[:4], torch.full((PAIRS,), 1), torch.full((PAIRS,), MODALITIES.index("video")))
    groups = {"domain_accuracy/comparison", "modality_accuracy/video"}
    assert set(computed(some)) == OVERALL | groups


def test_reset_forgets_the_pairs_before_it():
    metric = PreferenceStatistics(DOMAINS)
    metric.update(*pairs(seed=1))
    metric.compute()
    metric.reset()
    metric.update(*pairs(seed=2))
    assert {name: float(value) for name, value in metric.compute().items()} == computed(pairs(seed=2))


def test_the_states_of_two_ranks_together_give_what_one_rank_would():
    columns = pairs()
    ranks = [PreferenceStatistics(DOMAINS) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        own = rows(columns, slice(rank, None, 2))
        metric.update(*rows(own, slice(0, 20)))
        metric.update(*rows(own, slice(20, None)))
    states = ("scores", "lengths", "groups")  # gathered one after the other
    gathered = iter([[torch.cat(getattr(metric, name)) for metric in ranks] for name in states])
    ranks[0].distributed_available_fn = lambda: True
    ranks[0].dist_sync_fn = lambda tensor, group: next(gathered)
    together = {name: float(value) for name, value in ranks[0].compute().items()}
    assert together == pytest.approx(computed(columns), abs=CLOSE)
