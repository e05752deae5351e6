# SPDX-License-Identifier: Apache-2.0
"""Encoded pictures: one form for what every family of transformers makes of its pictures and clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils import ModelOutput


class Features(NamedTuple):
    """The encoded pictures of one kind.

    Attributes:
        tokens: one embedding for every image or video token of the batch, in row order.
        deepstack: further embeddings, added to the states behind the first decoder layers; empty in most
            families.
        is_list: whether the family wants a list of tensors, else one tensor with a leading axis.
    """

    tokens: Float[Tensor, "N D"]
    deepstack: tuple[Float[Tensor, "N D"], ...]
    is_list: bool


class Visuals(NamedTuple):
    """The pictures and clips of a batch, encoded once, to be used any number of times.

    Attributes:
        features: what ``encode`` gave, by kind: ``image``, ``video``.
        grids: the media that positions depend on, by processor name; empty in most families.
        times: how many times the batch is stacked upon itself.
    """

    features: dict[str, Features]
    grids: dict[str, Tensor]
    times: int = 1

    @classmethod
    def of(cls, outputs: Mapping[str, ModelOutput], grids: dict[str, Tensor]) -> Visuals:
        """The visuals that hold what the ``get_<kind>_features`` of transformers gave, by kind."""
        return cls({kind: _features(output) for kind, output in outputs.items()}, grids)

    def repeat(self, times: int) -> Visuals:
        """The visuals of the batch stacked ``times`` times, all its rows and then all again, uncopied."""
        grids = {name: grid.repeat(times, *[1] * (grid.dim() - 1)) for name, grid in self.grids.items()}
        return Visuals(self.features, grids, self.times * times)

    def encoder_outputs(self) -> dict[str, ModelOutput]:
        """The argument ``mm_encoder_outputs`` of ``forward`` and ``generate`` of transformers.

        The outputs are new ones at each call, because transformers changes them in place. Stack the batch
        with ``repeat`` before ``generate`` instead of asking it for several sequences: it cannot tell the
        pictures of a flat tensor apart.
        """
        return {kind: _output(features, self.times) for kind, features in self.features.items()}


@dataclass
class _Output(ModelOutput):
    """What the models read from encoded pictures."""

    pooler_output: list[Tensor] | Tensor | None = None
    deepstack_features: list[list[Tensor]] | None = None


def _features(output: ModelOutput) -> Features:
    """One flat tensor, whatever form the family gives."""
    pooled = output.pooler_output
    levels = getattr(output, "deepstack_features", None) or []
    return Features(_flat(pooled), tuple(_flat(level) for level in levels), not isinstance(pooled, Tensor))


def _output(features: Features, times: int) -> _Output:
    tokens = [features.tokens] * times if features.is_list else features.tokens.expand(times, -1, -1)
    return _Output(tokens, [[level] * times for level in features.deepstack] or None)


def _flat(parts: Tensor | Iterable[Tensor]) -> Float[Tensor, "N D"]:
    tensors = [parts] if isinstance(parts, Tensor) else parts
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])
