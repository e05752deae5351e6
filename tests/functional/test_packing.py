# SPDX-License-Identifier: Apache-2.0
"""A row of trees holds exactly what prompts joined with their responses hold, prompts once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.functional.masking import join, last_pool, mean_pool, token_pool
from ixc_lightning.functional.packing import (
    Trees,
    branch_positions,
    in_a_row,
    last_places,
    mean_of_trees,
    pack,
    pairs,
    predicting_places,
    token_places,
)
from ixc_lightning.functional.rollout import take_rows
from ixc_lightning.functional.sft import predicting_mask
from ixc_lightning.types import Prompts, Responses

EXACT = 1e-6
WIDTH = 5
REWARD_TOKEN = 3

tokens = st.integers(1, 9)


@st.composite
def trees(draw, tokens_of_a_branch=0):
    """Trees of any shape: prompts of one token or more, one branch or more, in any order, padded anywhere."""
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=4))
    more = draw(st.lists(st.integers(0, len(prompts) - 1), max_size=5))
    index = draw(st.permutations([*range(len(prompts)), *more]))
    branch = st.lists(tokens, min_size=tokens_of_a_branch, max_size=5)
    branches = [draw(branch) for _ in index]
    sides = st.sampled_from(["left", "right"])
    ids, mask = padded(prompts, draw(sides))
    return Trees(
        Prompts(ids, mask, {"types": ids % 2}, {}),
        Responses(*padded(branches, draw(sides))),
        torch.tensor(index),
    )


def padded(rows, side):
    width = max(map(len, rows)) + 1
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.bool),
    )
    for n, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[n, place] = torch.tensor(row, dtype=torch.long)
        mask[n, place] = True
    return ids, mask


def joined(trees):
    return join(take_rows(trees.prompts, trees.prompt_index), trees.responses)


def small():
    """Prompts 1 2 and 3; branches 4 and 5 6 of the first, 7 of the second, given in turn."""
    prompts = Prompts(*padded([[1, 2], [3]], "left"), {}, {})
    return Trees(prompts, Responses(*padded([[4], [7], [5, 6]], "right")), torch.tensor([0, 1, 0]))


def test_a_row_by_hand():
    packing = pack(small())
    ids = in_a_row(packing, small(), small().prompts.ids, small().responses.ids)
    assert ids.tolist() == [[1, 2, 4, 5, 6, 3, 7]]
    assert (packing.starts, packing.lengths) == ([0, 5, 2, 6, 3], [2, 1, 1, 1, 2])
    assert packing.members == [(0, 2), (1, 3), (0, 4)]
    assert last_places(packing).tolist() == [2, 6, 4]


def test_the_first_token_of_every_branch_is_predicted_behind_the_prompt():
    # row 1 2 | 4 | 5 6 | 3 | 7: 4 and 5 behind the 2 of their prompt, 7 behind the 3, 6 behind the 5
    assert predicting_places(pack(small())).tolist() == [1, 5, 1, 3]


@given(trees())
def test_the_places_before_response_tokens_are_those_of_the_joined_sequences(given):
    packing, sequences = pack(given), joined(given)
    # what a state knows: the tokens up to it, as the digits of a number
    read = torch.zeros_like(sequences.ids, dtype=torch.float64)
    for place in range(read.shape[1]):
        read[:, place] = 10 * (read[:, place - 1] if place else 0) + sequences.ids[:, place]
    row = torch.zeros(len(packing.places), dtype=torch.float64)
    for n, segments in enumerate(packing.members):
        places = [packing.starts[s] + k for s in segments for k in range(packing.lengths[s])]
        row[places] = read[n][sequences.mask[n]]
    found, wanted = row[predicting_places(packing)], read[predicting_mask(sequences.response_mask)]
    assert torch.equal(found, wanted)


def test_a_prompt_without_tokens_predicts_nothing():
    none = torch.zeros(1, 0, dtype=torch.long)
    bare = Trees(Prompts(none, none.bool(), {}, {}), Responses(*padded([[4]], "left")), torch.tensor([0]))
    with pytest.raises(ValueError, match="prompt 0 has no token, so that nothing predicts its responses"):
        predicting_places(pack(bare))


def test_the_mean_by_hand():
    hidden = torch.tensor([[1.0], [2.0], [4.0], [5.0], [6.0], [3.0], [7.0]])
    means = mean_of_trees(hidden, pack(small()))
    assert means.flatten().tolist() == pytest.approx([7 / 3, 5.0, 14 / 4])


@given(trees())
def test_every_branch_reads_like_its_prompt_joined_with_it(given):
    packing = pack(given)
    row = in_a_row(packing, given, given.prompts.ids, given.responses.ids)[0].tolist()
    assert len(row) == int(given.prompts.mask.sum() + given.responses.mask.sum())
    sequences = joined(given)
    for n, segments in enumerate(packing.members):
        read = [
            row[place]
            for segment in segments
            for place in range(packing.starts[segment], packing.starts[segment] + packing.lengths[segment])
        ]
        assert read == sequences.ids[n][sequences.mask[n]].tolist()


@given(trees())
def test_pooling_equals_that_of_the_joined_sequences(given):
    packing, sequences = pack(given), joined(given)
    ids = in_a_row(packing, given, given.prompts.ids, given.responses.ids)[0]
    table = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))
    hidden, apart = table[ids], table[sequences.ids]
    torch.testing.assert_close(
        mean_of_trees(hidden, packing), mean_pool(apart, sequences.mask), atol=EXACT, rtol=0
    )
    assert torch.equal(hidden[last_places(packing)], last_pool(apart, sequences.mask))
    if (sequences.ids == REWARD_TOKEN).any(dim=1).all():
        places = token_places(ids, packing, token_id=REWARD_TOKEN)
        expected = token_pool(apart, sequences.mask, sequences.ids, token_id=REWARD_TOKEN)
        assert torch.equal(hidden[places], expected)
    else:
        with pytest.raises(ValueError, match="reward token 3"):
            token_places(ids, packing, token_id=REWARD_TOKEN)


@given(trees(), st.integers(1, 3))
def test_positions_count_on_behind_the_prompt(given, axes):
    of_prompts = torch.stack(
        [(given.prompts.mask.cumsum(1) - 1).clamp(min=0) * n for n in range(1, axes + 1)]
    )
    found = branch_positions(given, of_prompts)
    assert found.shape == (axes, *given.responses.ids.shape)
    for row, tree in enumerate(given.prompt_index.tolist()):
        real = found[:, row][:, given.responses.mask[row]]
        highest = (int(given.prompts.mask[tree].sum()) - 1) * axes
        assert (real == highest + 1 + torch.arange(real.shape[1])).all()


def test_the_token_is_read_in_the_own_branch_and_not_in_a_neighbour():
    # the reward token stands in the prompt of the first tree, and before the start of the second one
    prompts = Prompts(*padded([[3, 1], [1]], "left"), {}, {})
    given = Trees(prompts, Responses(*padded([[5], [4, 3], [3]], "right")), torch.tensor([0, 0, 1]))
    packing = pack(given)
    ids = in_a_row(packing, given, given.prompts.ids, given.responses.ids)[0]
    assert ids.tolist() == [3, 1, 5, 4, 3, 1, 3]
    assert token_places(ids, packing, token_id=REWARD_TOKEN).tolist() == [0, 4, 6]
    with pytest.raises(ValueError, match=r"rows \[0, 2\]"):
        token_places(ids, packing, token_id=4)


def test_a_state_that_is_no_number_spoils_its_own_tree_alone():
    hidden = torch.ones(7, WIDTH)
    hidden[1] = torch.nan
    assert mean_of_trees(hidden, pack(small())).isfinite().all(dim=1).tolist() == [False, True, False]


def test_pairs_are_trees_of_two_branches():
    prompts = Prompts(*padded([[1, 2], [3]], "left"), {}, {})
    given = pairs(
        prompts, Responses(*padded([[4], [5]], "left")), Responses(*padded([[6, 7, 8], [9]], "left"))
    )
    row = in_a_row(pack(given), given, prompts.ids, given.responses.ids)
    assert row.tolist() == [[1, 2, 4, 6, 7, 8, 3, 5, 9]]
    assert given.prompt_index.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 0, 0], r"prompts \[1\] have no response"),
        ([0, 1, 2], r"there are 2 prompts, but responses to the prompts \[2\]"),
        ([0, 1], "3 responses, but the prompts of 2"),
    ],
)
def test_trees_that_are_none_are_refused(index, message):
    with pytest.raises(ValueError, match=message):
        pack(small()._replace(prompt_index=torch.tensor(index)))


def test_an_empty_tree_is_refused():
    prompts, responses = Prompts(*padded([[], [1]], "left"), {}, {}), Responses(*padded([[], []], "left"))
    with pytest.raises(ValueError, match=r"rows \[0\] have no real token"):
        pack(Trees(prompts, responses, torch.tensor([0, 1])))
