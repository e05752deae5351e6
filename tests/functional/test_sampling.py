# SPDX-License-Identifier: Apache-2.0
"""Tokens are drawn from their distribution by the row's own numbers."""

import torch

from ixc_lightning.functional.sampling import draw, uniforms

ROWS = 20_000
SPREAD = 4.5  # standard deviations of a count; one of 8 is farther out once in 20,000 seeds


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, -1.0, 2.0, -0.5])
    wanted = logits.double().softmax(0)
    drawn = draw(logits.expand(ROWS, -1), uniforms(ROWS, 1, seed=3)[:, 0])
    found = drawn.bincount(minlength=8) / ROWS
    assert ((found - wanted).abs() <= SPREAD * (wanted * (1 - wanted) / ROWS).sqrt()).all()


def test_the_first_token_whose_sum_is_above_the_number_is_taken():
    half_half = torch.tensor([[0.0, 0.0]])  # sums ½ and 1
    for number, token in ((0.0, 0), (0.4999, 0), (0.5, 1), (0.9999, 1)):
        assert draw(half_half, torch.tensor([number], dtype=torch.float64)).tolist() == [token]


def test_a_token_that_must_not_be_drawn_never_is():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1e4, -torch.inf]])
    highest = torch.tensor([1.0], dtype=torch.float64).nextafter(torch.zeros(1, dtype=torch.float64))
    for number in (torch.zeros(1, dtype=torch.float64), highest, torch.ones(1, dtype=torch.float64)):
        assert draw(logits, number).tolist() == [3]
    assert draw(logits.clamp(max=0), torch.zeros(1)).tolist() == [1]


def test_the_tail_of_a_large_vocabulary_is_reached():
    logits = torch.zeros(1, 200_000)
    for token in (0, 123_456, 199_999):
        number = torch.tensor([(token + 0.5) / 200_000], dtype=torch.float64)
        assert draw(logits, number).tolist() == [token]


def test_a_row_s_numbers_do_not_change_with_the_rows_behind_it():
    assert torch.equal(uniforms(2, 5, seed=1), uniforms(4, 5, seed=1)[:2])
    assert not torch.equal(uniforms(2, 5, seed=1), uniforms(2, 5, seed=2))
