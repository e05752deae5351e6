# SPDX-License-Identifier: Apache-2.0
"""Trees: prompts with several responses each, packed into one row of tokens in which no prompt stands twice.

A tree is a prompt followed by its branches, the responses; the row is one tree behind the other, without
padding: ``[prompt 0, branch, branch, prompt 1, branch, …]``. A pair costs P + T₁ + T₂ tokens instead of
2P + T₁ + T₂. Every branch goes on behind its prompt: its positions do, and it sees the prompt and itself
alone (``models.shared_attention``), so that its hidden states are those of the prompt joined with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ixc_lightning.functional.media import places_of_rows
from ixc_lightning.functional.rollout import stack_rows
from ixc_lightning.types import Prompts, Responses


class Trees(NamedTuple):
    """B prompts and R responses to them.

    Attributes:
        prompts: the prompts; every one has a response.
        responses: the responses, in any order.
        prompt_index: row of ``prompts`` that each response belongs to.
    """

    prompts: Prompts
    responses: Responses
    prompt_index: Int[Tensor, " R"]


class Packing(NamedTuple):
    """Where prompts and branches, the S = B + R segments, lie in the row of L tokens.

    Segment b is prompt b, segment B + r is response r.

    Attributes:
        places: of each token of the row among the real tokens of all prompts, followed by those of all
            responses.
        order: the segments from the start of the row to its end.
        starts: place of the first token of each segment.
        lengths: tokens of each segment; 0 is possible.
        tree: prompt of each response.
    """

    places: Int[Tensor, " L"]
    order: list[int]
    starts: list[int]
    lengths: list[int]
    tree: list[int]

    @property
    def branches(self) -> range:
        """The segments of the responses."""
        return range(len(self.lengths) - len(self.tree), len(self.lengths))

    @property
    def members(self) -> list[tuple[int, int]]:
        """The segments of each response: its prompt's and its own."""
        return list(zip(self.tree, self.branches, strict=True))


def pairs(prompts: Prompts, chosen: Responses, rejected: Responses) -> Trees:
    """Trees of two branches each: first all chosen responses, then all rejected ones."""
    ids = stack_rows([chosen.ids, rejected.ids])
    mask = stack_rows([chosen.mask.long(), rejected.mask.long()]).bool()
    index = torch.arange(len(prompts.ids), device=prompts.ids.device).repeat(2)
    return Trees(prompts, Responses(ids, mask), index)


def pack(trees: Trees) -> Packing:
    """Lay the trees out in one row.

    Prompts and responses may be padded on either side. The branches of a tree keep the order of their rows.

    Raises:
        ValueError: a prompt has no response, a response has no prompt, or both together have no token.
    """
    prompts, responses = trees.prompts.mask.sum(dim=1).tolist(), trees.responses.mask.sum(dim=1).tolist()
    tree = trees.prompt_index.tolist()
    _check(prompts, responses, tree)
    lengths = prompts + responses
    owners = [*range(len(prompts)), *tree]
    order = sorted(range(len(lengths)), key=owners.__getitem__)  # stable: each prompt before its responses
    starts = [0] * len(lengths)
    for segment, end in zip(order, accumulate(lengths[segment] for segment in order), strict=True):
        starts[segment] = end - lengths[segment]
    places = places_of_rows(torch.tensor(lengths), torch.tensor(order))
    return Packing(places.to(trees.prompt_index.device), order, starts, lengths, tree)


def in_a_row(
    packing: Packing,
    trees: Trees,
    of_prompts: Shaped[Tensor, "*axes B P"],
    of_responses: Shaped[Tensor, "*axes R T"],
) -> Shaped[Tensor, "*axes 1 L"]:
    """What there is of each token, ids say, in the order of the row."""
    real = [of_prompts[..., trees.prompts.mask], of_responses[..., trees.responses.mask]]
    return torch.cat(real, dim=-1)[..., packing.places].unsqueeze(-2)


def branch_positions(trees: Trees, of_prompts: Int[Tensor, "*axes B P"]) -> Int[Tensor, "*axes R T"]:
    """Positions of the responses: each counts on from the highest position of its prompt, on every axis.

    Args:
        trees: prompts and responses.
        of_prompts: the prompts' positions, of one axis or of several (time, height, width).
    """
    start = next_positions(of_prompts, trees.prompts.mask)
    count = trees.responses.mask.long().cumsum(dim=1) - 1
    positions = start[trees.prompt_index, None] + count.clamp(min=0)
    return positions.expand(*of_prompts.shape[:-2], -1, -1)


def next_positions(of_prompts: Int[Tensor, "*axes B P"], mask: Bool[Tensor, "B P"]) -> Int[Tensor, " B"]:
    """The position behind each prompt: one more than its highest, on whatever axis that is."""
    real = of_prompts.masked_fill(~mask, -1).amax(dim=-1)
    return real.reshape(-1, real.shape[-1]).amax(dim=0) + 1


def mean_of_trees(hidden: Float[Tensor, "L D"], packing: Packing) -> Float[Tensor, "R D"]:
    """Average of the hidden states of prompt and response, for each response, in float32.

    hᵣ = (Σ over the prompt + Σ over response r) / (P + Tᵣ), where the sum over a prompt is taken once; as
    ``masking.mean_pool`` of the prompt joined with the response.
    """
    parts = hidden.float().split([packing.lengths[segment] for segment in packing.order])
    # one sum a segment, so that a state that is no number spoils the scores of its own tree alone
    sums = torch.stack([part.sum(dim=0) for part in parts])
    where = torch.tensor(packing.order).argsort()[torch.tensor(packing.members)].to(hidden.device)
    counts = torch.tensor([packing.lengths[prompt] + packing.lengths[own] for prompt, own in packing.members])
    return sums[where].sum(dim=1) / counts.to(hidden.device)[:, None]


def last_places(packing: Packing) -> Int[Tensor, " R"]:
    """Place of the last token of each response, or of its prompt if the response is empty."""
    last = [own if packing.lengths[own] else prompt for prompt, own in packing.members]
    ends = [packing.starts[segment] + packing.lengths[segment] - 1 for segment in last]
    return torch.tensor(ends, device=packing.places.device)


def predicting_places(packing: Packing) -> Int[Tensor, " N"]:
    """Place of the token before each response token, all responses one after the other.

    The state there predicts the token. Before the first token of a response it is the prompt's last one,
    which all branches of a tree share.

    Raises:
        ValueError: a response to a prompt without tokens: nothing predicts its first token.

    Example:
        >>> ids = torch.tensor([[7, 8]])
        >>> both = Responses(ids.repeat(2, 1), torch.tensor([[True, True], [True, False]]))
        >>> tree = Trees(Prompts(ids, ids > 0, {}, {}), both, torch.tensor([0, 0]))
        >>> predicting_places(pack(tree)).tolist()  # the row is [prompt, prompt, first, first, second]
        [1, 2, 1]
    """
    places: list[int] = []
    for prompt, own in packing.members:
        start, length = packing.starts[own], packing.lengths[own]
        if length and not packing.lengths[prompt]:
            raise ValueError(f"prompt {prompt} has no token, so that nothing predicts its responses")
        if length:
            last = packing.starts[prompt] + packing.lengths[prompt] - 1
            places += [last, *range(start, start + length - 1)]
    return torch.tensor(places, dtype=torch.long, device=packing.places.device)


def token_places(ids: Int[Tensor, " L"], packing: Packing, *, token_id: int) -> Int[Tensor, " R"]:
    """Place of the last occurrence of a token in each response, or in its prompt if the response has none.

    Args:
        ids: the tokens of the row.
        packing: of the row.
        token_id: the token, a reward token for example.

    Raises:
        ValueError: neither holds it, as happens when it was truncated away.
    """
    places = torch.arange(len(ids), device=ids.device)
    latest = places.masked_fill(ids != token_id, -1).cummax(dim=0).values.tolist()

    def last(segment: int) -> int:
        start, length = packing.starts[segment], packing.lengths[segment]
        return latest[start + length - 1] if length and latest[start + length - 1] >= start else -1

    found = [max(last(prompt), last(own)) for prompt, own in packing.members]
    if missing := [row for row, place in enumerate(found) if place < 0]:
        raise ValueError(
            f"rows {missing} do not hold the reward token {token_id}; was it appended to the response?"
        )
    return torch.tensor(found, device=ids.device)


def _check(prompts: Sequence[int], responses: Sequence[int], tree: Sequence[int]) -> None:
    if len(responses) != len(tree):
        raise ValueError(f"{len(responses)} responses, but the prompts of {len(tree)} are given")
    if strange := sorted(set(tree) - set(range(len(prompts)))):
        raise ValueError(f"there are {len(prompts)} prompts, but responses to the prompts {strange}")
    if bare := sorted(set(range(len(prompts))) - set(tree)):
        raise ValueError(f"the prompts {bare} have no response: leave them out")
    empty = [row for row, b in enumerate(tree) if not prompts[b] + responses[row]]
    if empty:
        raise ValueError(f"rows {empty} have no real token to pool")
