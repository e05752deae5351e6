# SPDX-License-Identifier: Apache-2.0
"""Attention behind prompts that are kept once is that over each row's own copy of its prompt."""

import pytest
import torch
from transformers import DynamicCache

from ixc_lightning.models.prefix import Prefix

SAME = 1e-5  # float32, sums in another order
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def dense(query, keys, values, mask, own_key, own_value, prompt_index, window):
    """Row by row, in float64, with the keys of prompt and row in one tensor."""
    found = []
    for row, prompt in enumerate(prompt_index.tolist()):
        real = mask[prompt]
        key = torch.cat([keys[prompt][:, real], own_key[row]], dim=1).double()
        value = torch.cat([values[prompt][:, real], own_value[row]], dim=1).double()
        if window is not None:
            key, value = key[:, -window:], value[:, -window:]
        key, value = (part.repeat_interleave(HEADS // KEY_HEADS, dim=0) for part in (key, value))
        weights = (query[row].double() @ key.mT / WIDTH**0.5).softmax(-1)
        found.append((weights @ value).squeeze(1))
    return torch.stack(found).unsqueeze(1)


@pytest.mark.parametrize("window", [None, 20, 6, 2, 1])
@pytest.mark.parametrize("length", [1, 3])
def test_attention_is_that_over_copies(window, length):
    torch.manual_seed(0)
    mask = torch.tensor([[True] * 7, [False] * 4 + [True] * 3, [False] * 6 + [True]])
    keys, values = torch.randn(2, 3, KEY_HEADS, 7, WIDTH)
    cache = DynamicCache()
    cache.update(keys, values, 0)
    prompt_index = torch.tensor([2, 0, 0, 1, 2, 0])
    prefix = Prefix(cache, mask, prompt_index)
    for rows in (torch.arange(6), torch.tensor([1, 5, 3, 4]), torch.tensor([3, 1])):
        prefix.keep(rows)
        prompt_index = prompt_index[rows]
        query = torch.randn(len(rows), HEADS, 1, WIDTH)
        own_key, own_value = torch.randn(2, len(rows), KEY_HEADS, length, WIDTH)
        found = prefix.attend(0, query, own_key, own_value, scaling=None, window=window)
        wanted = dense(query, keys, values, mask, own_key, own_value, prompt_index, window)
        torch.testing.assert_close(found.double(), wanted, atol=SAME, rtol=0)
    # [1, 5, 3, 4] of six and [3, 1] of those are rows 4 and 5: prompts 2 and 0; prompt 1 is forgotten
    assert prompt_index.tolist() == [2, 0]
    assert prefix.layers[0][0].shape[0] == 2


def test_products_of_any_size_are_no_trouble():
    mask = torch.ones(1, 3, dtype=torch.bool)
    cache = DynamicCache()
    cache.update(torch.full((1, 1, 3, 2), 1e4), torch.ones(1, 1, 3, 2), 0)
    prefix = Prefix(cache, mask, torch.tensor([0]))
    for sign in (1.0, -1.0):
        query = torch.full((1, 1, 1, 2), sign * 1e4)
        own = torch.zeros(1, 1, 1, 2)
        found = prefix.attend(0, query, own, 5 + own, scaling=1.0, window=None)
        assert torch.equal(found.flatten(), torch.full((2,), 1.0 if sign > 0 else 5.0))


def test_rows_grow_by_one_token_at_a_time():
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), 0)
    prefix = Prefix(cache, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]))
    two = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="rows grow by one token at a time, not by 2"):
        prefix.attend(0, two, two, two, scaling=None, window=None)
