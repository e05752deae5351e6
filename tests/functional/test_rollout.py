# SPDX-License-Identifier: Apache-2.0
"""Rows of a rollout by hand: where responses end, what long ones cost, and which seed draws them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.functional.rollout import (
    length_penalty,
    rollout_seed,
    stack_prompts,
    stack_rows,
    take_rows,
    until_stop,
)
from ixc_lightning.types import Prompts

SMALL = st.integers(0, 3)


def test_a_response_is_real_up_to_and_including_its_first_stop_token():
    tokens = torch.tensor([[5, 1, 5, 1], [5, 6, 7, 8], [1, 5, 5, 5], [5, 6, 7, 2]])
    mask, ended = until_stop(tokens, stop_tokens=[1, 2])
    assert mask.sum(1).tolist() == [2, 4, 1, 4]
    assert mask.tolist()[0] == [True, True, False, False]
    assert ended.tolist() == [True, False, True, True]


@pytest.mark.parametrize("pad", [0, 1, 7])
def test_whatever_stands_behind_the_stop_token_is_padding_even_another_stop_token(pad):
    mask, _ = until_stop(torch.tensor([[5, 1, pad, pad]]), stop_tokens=[1])
    assert mask.tolist() == [[True, True, False, False]]


def test_zeros_that_were_sampled_are_real():
    mask, _ = until_stop(torch.tensor([[0, 0, 1, 0]]), stop_tokens=[1])
    assert mask.tolist() == [[True, True, True, False]]


@given(st.lists(st.lists(SMALL, min_size=4, max_size=4), min_size=1, max_size=4), st.sets(SMALL, min_size=1))
def test_until_stop_equals_a_loop(rows, stops):
    mask, ended = until_stop(torch.tensor(rows), stop_tokens=sorted(stops))
    for row, real, end in zip(rows, mask.tolist(), ended.tolist(), strict=True):
        places = [place for place, token in enumerate(row) if token in stops]
        length = places[0] + 1 if places else len(row)
        assert (real, end) == ([True] * length + [False] * (len(row) - length), bool(places))


def test_prompts_are_stacked_as_a_whole_and_their_media_are_kept_once():
    ids = torch.tensor([[3, 4], [5, 0]])
    stacked = stack_prompts(Prompts(ids, ids.bool(), {"types": ids % 2}, {"pixels": ids}), times=2)
    assert stacked.ids.tolist() == [[3, 4], [5, 0], [3, 4], [5, 0]]
    assert stacked.mask.tolist() == stacked.ids.bool().tolist()
    assert stacked.token_types["types"].tolist() == (stacked.ids % 2).tolist()
    assert stacked.media["pixels"] is ids


def test_rows_of_prompts_are_taken_in_the_given_order():
    ids = torch.tensor([[3, 4], [5, 0], [6, 7]])
    taken = take_rows(Prompts(ids, ids.bool(), {"types": ids % 2}, {"pixels": ids}), torch.tensor([2, 0, 2]))
    assert taken.ids.tolist() == [[6, 7], [3, 4], [6, 7]]
    assert taken.mask.tolist() == taken.ids.bool().tolist()
    assert taken.token_types["types"].tolist() == (taken.ids % 2).tolist()
    assert taken.media["pixels"] is ids


def test_parts_of_different_length_are_stacked_with_zeros_on_the_right():
    parts = [torch.tensor([[1, 2, 3]]), torch.tensor([[4], [5]])]
    assert stack_rows(parts).tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]


def test_the_length_penalty_by_hand():
    # (3 − 2) / (6 − 2) = ¼
    assert length_penalty(torch.tensor([1, 2, 3, 6, 60]), free=2, limit=6).tolist() == [0, 0, -0.25, -1, -1]


def test_a_length_penalty_without_a_slope_is_refused():
    with pytest.raises(ValueError, match="free is 3, but must be below limit, 3"):
        length_penalty(torch.tensor([1]), free=3, limit=3)


def test_every_rank_and_iteration_has_a_seed_of_its_own_and_always_the_same():
    seeds = [
        rollout_seed(seed, rank=rank, iteration=iteration)
        for seed in range(4)
        for rank in range(8)
        for iteration in range(50)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert rollout_seed(3, rank=1, iteration=2) == 65181022104739061


def test_a_digit_does_not_wander_from_one_number_to_the_next():
    assert rollout_seed(1, rank=11, iteration=1) != rollout_seed(11, rank=1, iteration=1)
    assert rollout_seed(0, rank=1, iteration=12) != rollout_seed(0, rank=11, iteration=2)
