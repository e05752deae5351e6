# SPDX-License-Identifier: Apache-2.0
"""The scores of all ranks come together in the order of the benchmark, whoever scored what when."""

import pytest
import torch

from ixc_lightning.metrics.response_scores import ResponseScores

PLACES = torch.tensor([(item, place) for item in range(4) for place in range(3)])
SCORES = torch.arange(12).float() / 7


def update(metric, rows, real=None):
    rows = torch.tensor(rows, dtype=torch.long)
    real = torch.ones(len(rows), dtype=torch.bool) if real is None else torch.tensor(real, dtype=torch.bool)
    metric.update(SCORES[rows], *PLACES[rows].unbind(dim=1), real)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_ordered_by_item_and_place(seed):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
    metric = ResponseScores()
    update(metric, order[:5])
    update(metric, order[5:])
    scores, places = metric.compute()
    assert torch.equal(scores, SCORES)
    assert torch.equal(places, PLACES)


def test_rows_that_are_not_real_are_forgotten():
    metric = ResponseScores()
    update(metric, [4, 0, 2], real=[True, False, True])
    scores, places = metric.compute()
    assert scores.tolist() == SCORES[[2, 4]].tolist()
    assert places.tolist() == [[0, 2], [1, 1]]


@pytest.mark.parametrize("second", [[1, 3], []])
def test_the_states_of_two_ranks_together_give_what_one_rank_would(second):
    ranks = [ResponseScores(), ResponseScores()]
    update(ranks[0], [2, 0])
    update(ranks[1], second, real=[True] * len(second))
    gathered = iter([[torch.cat(getattr(metric, name)) for metric in ranks] for name in ("scores", "places")])
    ranks[0].distributed_available_fn = lambda: True
    ranks[0].dist_sync_fn = lambda tensor, group: next(gathered)
    scores, _ = ranks[0].compute()
    assert torch.equal(scores, SCORES[sorted([2, 0, *second])])
