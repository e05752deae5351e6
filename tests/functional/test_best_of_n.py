# SPDX-License-Identifier: Apache-2.0
"""The expected best of n is the mean over all subsets, for scores and for what else the chosen is."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from ixc_lightning.functional.best_of_n import expected_best_of_n

SAME = 1e-12  # float64, by logarithms of factorials
LARGE = 1e-9  # the same for hundreds of samples


def _by_enumeration(scores, values):
    """The mean over all subsets of each size; where several are best, the mean over these."""

    def chosen(subset):
        best = max(scores[i] for i in subset)
        return np.mean([values[i] for i in subset if scores[i] == best])

    return [
        np.mean([chosen(subset) for subset in combinations(range(len(scores)), n)])
        for n in range(1, len(scores) + 1)
    ]


def test_a_hand_computed_example():
    # subsets of two: {1,4} {1,2} {4,2}, best 4, 2, 4; lengths of these: 10, 30, 10
    scores, lengths = torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([[20, 10, 30]])
    torch.testing.assert_close(
        expected_best_of_n(scores), torch.tensor([[7 / 3, 10 / 3, 4.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        expected_best_of_n(scores, lengths), torch.tensor([[20.0, 50 / 3, 10.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize("levels", [1, 2, 3, 1000])
def test_it_is_the_mean_over_all_subsets_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (4, 7)).astype(np.float64)
    values = rng.normal(size=(4, 7))
    found = expected_best_of_n(torch.from_numpy(scores), torch.from_numpy(values))
    expected = [_by_enumeration(*row) for row in zip(scores, values, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=SAME, rtol=0)


def test_it_is_pass_at_k_for_right_and_wrong():
    right = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1]])
    expected = [1 - math.comb(5, k) / math.comb(8, k) for k in range(1, 9)]
    np.testing.assert_allclose(expected_best_of_n(right).numpy()[0], expected, atol=SAME, rtol=0)


def test_it_is_unbiased():
    # two draws from six equally likely numbers, none twice: the mean of the estimator over all samples of
    # four of these must be the expected best of two
    population = [0.0, 1.0, 3.0, 7.0, 8.0, 20.0]
    truth = _by_enumeration(population, population)[1]
    samples = torch.tensor(list(combinations(population, 4)), dtype=torch.float64)
    assert expected_best_of_n(samples)[:, 1].mean().item() == pytest.approx(truth, abs=SAME)


def test_ends_are_the_mean_and_the_best_and_it_never_falls_between():
    scores = torch.randn(5, 300, dtype=torch.float64)
    found = expected_best_of_n(scores)
    torch.testing.assert_close(found[:, 0], scores.mean(dim=1), atol=LARGE, rtol=0)
    torch.testing.assert_close(found[:, -1], scores.amax(dim=1), atol=LARGE, rtol=0)
    assert (found.diff(dim=1) > -LARGE).all()


def test_the_order_of_the_samples_does_not_matter():
    scores, values = torch.randn(2, 9).round(), torch.randn(2, 9)
    order = torch.randperm(9)
    torch.testing.assert_close(
        expected_best_of_n(scores[:, order], values[:, order]),
        expected_best_of_n(scores, values),
        atol=SAME,
        rtol=0,
    )


def test_one_sample_is_its_own_best():
    assert expected_best_of_n(torch.tensor([[2.5]])).tolist() == [[2.5]]


def test_infinite_scores_choose_and_are_not_multiplied():
    scores = torch.tensor([[-torch.inf, 1.0]])
    assert expected_best_of_n(scores, torch.tensor([[5.0, 7.0]])).tolist() == [[6.0, 7.0]]


@pytest.mark.parametrize(
    ("scores", "values", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 2), "must be of one shape"),
        (torch.zeros(2, 0), None, "must be of one shape"),
        (torch.tensor([[1.0, torch.nan]]), None, "not a number"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, values, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        expected_best_of_n(scores, values)
