# SPDX-License-Identifier: Apache-2.0
"""Merging the pictures and clips of several samples into those of a batch, and finding them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

GLIMPSE = 16
"""About how many values of a tensor are looked at before all of them."""


def merge_media(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the media of a batch: for every key the samples' tensors one after the other, in row order.

    Each sample holds what a processor returned for it *alone*, less the tensors with one value per token.
    Along the first axis the tensors are joined, so that it runs over all pictures (or patches, tiles, clips)
    of the batch; the other axes are filled up with zeros at their ends, which is how the processors of
    transformers fill tiles and frames themselves. A key that a sample lacks contributes nothing, so samples
    with none, one or many pictures and clips may mix.

    Args:
        samples: for each row of the batch its media by processor name; empty for a row of text.

    Returns:
        The merged media; empty for a batch of text.

    Raises:
        ValueError: if a key has another number of axes in one sample than in the others.

    Example:
        >>> one, two = torch.ones(1, 2), torch.ones(2, 1)
        >>> merge_media([{"pixel_values": one}, {}, {"pixel_values": two}])["pixel_values"].tolist()
        [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    """
    keys = dict.fromkeys(key for sample in samples for key in sample)
    return {key: _join(key, [sample[key] for sample in samples if key in sample]) for key in keys}


def number_alike(samples: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """Number samples from 0 so that those with equal media, and no others, have the same number.

    Args:
        samples: for each row of a batch its media by processor name.

    Returns:
        The number of each sample; a new one is one more than those before it.

    Example:
        >>> dark, light = torch.zeros(1, 2), torch.ones(1, 2)
        >>> number_alike([{"pixel_values": light}, {}, {"pixel_values": dark}, {"pixel_values": light}])
        [0, 1, 2, 0]
    """
    firsts: list[Mapping[str, Tensor]] = []
    known: dict[tuple[Any, ...], list[int]] = {}
    numbers = []
    for sample in samples:
        candidates = known.setdefault(_glimpse(sample), [])
        number = next((n for n in candidates if _are_equal(sample, firsts[n])), len(firsts))
        if number == len(firsts):
            firsts.append(sample)
            candidates.append(number)
        numbers.append(number)
    return numbers


def places_of_rows(counts: Int[Tensor, " B"], rows: Int[Tensor, " rows"]) -> Int[Tensor, " places"]:
    """Where the entries of some rows lie in a tensor that holds those of all rows, one row after the other.

    Args:
        counts: how many entries each of all rows has.
        rows: the rows that are wanted, in any order, repeats allowed.

    Returns:
        The places of the first wanted row's entries, then those of the next one.

    Example:
        >>> places_of_rows(torch.tensor([2, 0, 3]), torch.tensor([2, 1, 0])).tolist()
        [2, 3, 4, 0, 1]
    """
    starts, wanted = (counts.cumsum(0) - counts)[rows], counts[rows]
    within = torch.arange(int(wanted.sum()), device=counts.device)
    return within + (starts - wanted.cumsum(0) + wanted).repeat_interleave(wanted)


def entries_per_row(patches: Int[Tensor, " entries"], tokens: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How many pictures each row has, told from their sizes.

    Every picture has a fixed number of patches to one token, so the pictures of the first rows end where the
    tokens of those rows end.

    Args:
        patches: number of patches of each picture of the batch, in row order; none is 0.
        tokens: number of picture tokens of each row; they may not all be 0.

    Raises:
        ValueError: the pictures do not end where the rows end.

    Example:
        >>> entries_per_row(torch.tensor([4, 8, 4]), torch.tensor([0, 3, 1])).tolist()
        [0, 2, 1]
    """
    ends = tokens.cumsum(0) * (patches.sum() // tokens.sum())
    last = patches.cumsum(0)
    if not torch.isin(ends, torch.cat([last.new_zeros(1), last])).all() or ends[-1] != last[-1]:
        raise ValueError("the sizes of the pictures do not add up to the picture tokens of the rows")
    return torch.bincount(torch.searchsorted(ends, last), minlength=len(tokens))


def runs_within(sizes: Sequence[int], limit: int) -> list[int]:
    """Cut a list into runs of neighbours of at most a given size together, as few as the order allows.

    Args:
        sizes: of each entry.
        limit: of a run; an entry beyond it is a run of its own.

    Returns:
        The number of entries of each run.

    Example:
        >>> runs_within([3, 4, 2, 9, 1], 6)  # 3, then 4 + 2, then 9 alone, then 1
        [1, 2, 1, 1]
    """
    runs: list[int] = []
    room = 0
    for size in sizes:
        if runs and size <= room:
            runs[-1] += 1
        else:
            runs.append(1)
            room = limit
        room -= size
    return runs


def _glimpse(sample: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What equal media have in common and most others have not: their shapes and a few of their values."""
    flat = {name: value.reshape(-1) for name, value in sample.items()}
    return tuple(
        (name, *sample[name].shape, *flat[name][:: max(1, len(flat[name]) // GLIMPSE)].tolist())
        for name in sorted(sample)
    )


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _join(key: str, tensors: list[Tensor]) -> Tensor:
    if len({tensor.dim() for tensor in tensors}) > 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"{key} has {shapes}: the same number of axes is needed")
    sizes = [max(axis) for axis in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_fill(tensor, sizes) for tensor in tensors])


def _fill(tensor: Tensor, sizes: list[int]) -> Tensor:
    gaps = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
    # `pad` counts axes from the last one
    return pad(tensor, [side for gap in reversed(gaps) for side in (0, gap)]) if any(gaps) else tensor
