# SPDX-License-Identifier: Apache-2.0
"""Attention over a row of trees, cut into rectangles, against one dense mask over the row in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ixc_lightning.functional.packing import Packing
from ixc_lightning.models import shared_attention as module
from ixc_lightning.models.shared_attention import Plan, shared_attention

HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6
EXACT = 1e-5  # float32, sums in another order, at values of order one
GRADIENT = 1e-4


def row_of(prompts: list[int], branches: list[list[int]]) -> Packing:
    """The packing of trees whose prompts and branches have these lengths."""
    lengths = [*prompts, *(length for own in branches for length in own)]
    tree = [b for b, own in enumerate(branches) for _ in own]
    order, starts, end = [], [0] * len(lengths), 0
    for b in range(len(prompts)):
        order += [b, *(len(prompts) + r for r, owner in enumerate(tree) if owner == b)]
    for segment in order:
        starts[segment], end = end, end + lengths[segment]
    return Packing(torch.arange(end), order, starts, lengths, tree)


def dense(packing: Packing, window: int | None, blocks: torch.Tensor | None) -> torch.Tensor:
    """True where a token of the row sees another: token by token, from the definition."""
    owner = {}
    for segment, (start, length) in enumerate(zip(packing.starts, packing.lengths, strict=True)):
        for place in range(start, start + length):
            is_branch = segment in packing.branches
            tree = packing.tree[segment - packing.branches.start] if is_branch else segment
            ahead = packing.lengths[tree] if is_branch else 0
            owner[place] = tree, segment if is_branch else None, ahead + place - start
    seen = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for query, (tree, branch, index) in owner.items():
        for key, (its_tree, its_branch, its_index) in owner.items():
            is_related = tree == its_tree and its_branch in (None, branch)
            in_block = blocks is not None and blocks[query] == blocks[key] >= 0
            near = window is None or its_index > index - window
            seen[query, key] = is_related and (its_index <= index or in_block) and near
    return seen


def states(length: int) -> list[torch.Tensor]:
    shapes = [(HEADS, WIDTH), (KEY_HEADS, WIDTH), (KEY_HEADS, VALUE_WIDTH)]
    # (1, L, heads, width) seen as (1, heads, L, width), as models make them
    return [torch.randn(1, length, *shape).transpose(1, 2).requires_grad_() for shape in shapes]


def assert_equals_dense(
    packing: Packing, window: int | None = None, blocks: torch.Tensor | None = None
) -> None:
    torch.manual_seed(0)
    query, key, value = states(len(packing.places))
    found, _ = shared_attention(
        nn.Identity(), query, key, value, None, shared_prefix=Plan(packing, blocks), sliding_window=window
    )
    weight = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weight).sum(), (query, key, value))
    exact = [states.detach().double().requires_grad_() for states in (query, key, value)]
    keys, values = (states.repeat_interleave(HEADS // KEY_HEADS, dim=1) for states in exact[1:])
    products = exact[0] @ keys.transpose(2, 3) / WIDTH**0.5
    weights = products.masked_fill(~dense(packing, window, blocks), -torch.inf).softmax(dim=-1)
    expected = (weights @ values).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, atol=EXACT, rtol=0)
    for gradient, wanted in zip(
        gradients, torch.autograd.grad((expected * weight).sum(), exact), strict=True
    ):
        torch.testing.assert_close(gradient.double(), wanted, atol=GRADIENT, rtol=0)


lengths = st.integers(1, 12)
shapes = st.lists(
    st.tuples(st.integers(0, 12), st.lists(lengths, min_size=1, max_size=4)), min_size=1, max_size=5
)


@settings(max_examples=25)
@given(shapes, st.sampled_from([None, 1, 3, 9]))
def test_any_trees_equal_a_dense_mask(shape, window):
    prompts, branches = zip(*shape, strict=True)
    assert_equals_dense(row_of(list(prompts), list(branches)), window)


@pytest.mark.parametrize("window", [None, 3])
def test_tokens_of_a_block_see_each_other_in_both_directions(window):
    packing = row_of([6, 2, 9], [[2], [1, 3], [2]])
    blocks = torch.full_like(packing.places, -1)
    blocks[1:4], blocks[4:6] = 1, 2
    start = packing.starts[2]
    blocks[start + 2 : start + 5] = 3
    assert_equals_dense(packing, window, blocks)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.lists(st.integers(1, 99), min_size=1, max_size=4)), min_size=1)
)
def test_every_token_asks_once_and_little_is_wasted(shape):
    prompts, branches = zip(*shape, strict=True)
    packing = row_of(list(prompts), list(branches))
    plan = Plan(packing)
    asked = torch.cat([group.queries[group.real] for group in plan.groups])
    assert sorted(asked.tolist()) == packing.places.tolist()
    for group in plan.groups:
        rows, ahead = group.real.sum(dim=1), group.query_index[:, 0]
        needed = int((rows * (ahead + rows)).sum())
        assert group.queries.numel() * group.key_index.shape[1] <= module.WASTE * needed + module.SMALL


def test_keys_are_repeated_where_no_kernel_takes_groups(monkeypatch):
    monkeypatch.setattr(module, "_takes_groups", lambda *_: False)
    assert_equals_dense(row_of([6, 2, 9], [[2], [1, 3], [2]]))


def test_branches_of_one_prompt_are_one_call_with_one_mask():
    plan = Plan(row_of([50], [[7, 7, 6]]))
    masks = plan.masks(None, torch.float32)
    assert [None if mask is None else mask.shape for mask in masks] == [None, (1, 1, 7, 57)]


def test_a_prompt_with_one_branch_is_plainly_causal_as_a_whole():
    plan = Plan(row_of([50, 50], [[7], [7]]))
    assert [group.queries.shape for group in plan.groups] == [(2, 57)]
    assert plan.masks(None, torch.float32) == [None]


def test_a_mask_is_made_once_for_all_layers_and_a_wide_window_needs_none():
    plan = Plan(row_of([5], [[2, 3]]))
    assert plan.masks(4, torch.float32)[1] is plan.masks(4, torch.float32)[1]
    assert plan.masks(8, torch.float32)[0] is None
    assert plan.masks(7, torch.float32)[0] is not None
