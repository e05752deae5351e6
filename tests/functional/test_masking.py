# SPDX-License-Identifier: Apache-2.0
"""Joining and pooling depend on what is real, never on where the padding is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.functional.masking import (
    join,
    last_index,
    last_pool,
    mean_pool,
    pad_left,
    token_pool,
)
from ixc_lightning.types import Prompts, Responses

EXACT = 1e-6

rows = st.lists(
    st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=5),
        st.lists(st.integers(1, 9), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def _padded(sequences, side, extra=0):
    width = max(map(len, sequences)) + extra
    ids, mask = (
        torch.zeros(len(sequences), width, dtype=torch.long),
        torch.zeros(len(sequences), width, dtype=torch.bool),
    )
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = True
    return ids, mask


def _batch(pairs, prompt_side="right", response_side="right", extra=0):
    prompts, responses = zip(*pairs, strict=True)
    ids, mask = _padded(prompts, prompt_side, extra)
    return Prompts(ids, mask, {"token_type_ids": ids % 2}, {}), Responses(
        *_padded(responses, response_side, extra)
    )


@given(rows, st.sampled_from(["left", "right"]), st.sampled_from(["left", "right"]), st.integers(0, 3))
def test_join_puts_each_response_right_after_its_prompt(pairs, prompt_side, response_side, extra):
    joined = join(*_batch(pairs, prompt_side, response_side, extra))
    for row, (prompt, response) in enumerate(pairs):
        length = len(prompt) + len(response)
        assert joined.ids[row, :length].tolist() == prompt + response
        assert joined.mask[row].tolist() == [place < length for place in range(joined.ids.shape[1])]
        assert joined.response_mask[row].nonzero().flatten().tolist() == list(range(len(prompt), length))
        assert joined.token_types["token_type_ids"][row, :length].tolist() == [i % 2 for i in prompt] + [
            0
        ] * len(response)
    assert (joined.ids[~joined.mask] == 0).all()
    assert joined.ids.shape[1] == max(len(prompt) + len(response) for prompt, response in pairs)


def test_join_refuses_different_numbers_of_rows():
    prompts, _ = _batch([([1], [2]), ([3], [4])])
    _, responses = _batch([([1], [2])])
    with pytest.raises(ValueError, match="2 prompts"):
        join(prompts, responses)


def test_mean_pool_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    pooled = mean_pool(hidden, torch.tensor([[True, True, False]]))
    assert torch.allclose(pooled, torch.tensor([[2.0, 4.0]]), atol=EXACT)


def test_last_pool_reads_the_last_real_token_on_either_side():
    hidden = torch.arange(6.0).reshape(2, 3, 1)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert last_pool(hidden, mask).flatten().tolist() == [1.0, 5.0]


def test_token_pool_reads_the_last_real_occurrence():
    hidden, ids = torch.arange(4.0).reshape(1, 4, 1), torch.tensor([[7, 7, 5, 7]])
    mask = torch.tensor([[True, True, True, False]])
    assert token_pool(hidden, mask, ids, token_id=7).item() == 1.0


def test_token_pool_names_the_rows_that_lack_the_token():
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        token_pool(
            torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), torch.tensor([[7], [5]]), token_id=7
        )


@pytest.mark.parametrize("pool", [mean_pool, last_pool])
def test_padding_gets_exactly_no_gradient_and_no_say(pool):
    hidden = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    spoiled = hidden.masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    pooled = pool(spoiled, mask)
    assert torch.equal(pooled, pool(hidden, mask))
    pooled.sum().backward()
    assert (spoiled.grad[~mask] == 0).all()


@pytest.mark.parametrize("pool", [mean_pool, last_pool])
def test_a_row_without_tokens_is_an_error(pool):
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        pool(torch.zeros(2, 2, 1), torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize("pool", [mean_pool, last_pool])
def test_pooling_of_bfloat16_is_float32(pool):
    assert (
        pool(torch.ones(1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bool)).dtype
        == torch.float32
    )


def test_last_index_of_rows_of_every_kind():
    mask = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])
    assert last_index(mask).tolist() == [2, 0, 0]


@given(rows, st.sampled_from(["left", "right"]), st.integers(0, 2))
def test_padding_moves_to_the_left_and_the_tokens_keep_their_order(pairs, side, extra):
    prompts, _ = _batch(pairs, prompt_side=side, extra=extra)
    moved = pad_left(prompts)
    longest = max(len(prompt) for prompt, _ in pairs)
    types = moved.token_types["token_type_ids"]
    for row, (prompt, _) in enumerate(pairs):
        gap = longest - len(prompt)
        assert moved.ids[row].tolist() == [0] * gap + prompt
        assert moved.mask[row].tolist() == [False] * gap + [True] * len(prompt)
        assert types[row].tolist() == [0] * gap + [token % 2 for token in prompt]
