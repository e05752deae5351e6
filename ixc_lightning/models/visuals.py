# SPDX-License-Identifier: Apache-2.0
"""Encoded pictures: one form for what every family of transformers makes of its pictures and clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from ixc_lightning.functional.media import entries_per_row, places_of_rows
from ixc_lightning.types import Prompts

GRIDS = {"image": ("image_grid_thw",), "video": ("video_grid_thw", "second_per_grid_ts")}
"""The media of one entry per picture, by kind; the first one holds its patches along time and sides."""


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

    def at(self, places: Int[Tensor, " places"]) -> Features:
        """The embeddings at the given places."""
        return Features(self.tokens[places], tuple(level[places] for level in self.deepstack), self.is_list)


class Visuals:
    """The pictures and clips of a batch, encoded once, to be used any number of times.

    Neither tuple nor dataclass: FSDP2 looks for tensors with a gradient in those when they enter or leave a
    sharded network, and times its collectives by them; but some ranks have pictures and others none.

    Attributes:
        features: what ``encode`` gave, by kind: ``image``, ``video``.
        grids: the media that positions depend on, by processor name; empty in most families.
        times: how many times the batch is stacked upon itself.
        counts: picture tokens of each row of the unstacked batch, by kind, as ``encode`` finds them; None
            before.
    """

    def __init__(
        self,
        features: dict[str, Features],
        grids: dict[str, Tensor],
        *,
        times: int = 1,
        counts: dict[str, Int[Tensor, " B"]] | None = None,
    ) -> None:
        self.features = features
        self.grids = grids
        self.times = times
        self.counts = counts

    @classmethod
    def of(cls, outputs: Mapping[str, ModelOutput], grids: dict[str, Tensor]) -> Visuals:
        """The visuals that hold what the ``get_<kind>_features`` of transformers gave, by kind."""
        return cls({kind: _features(output) for kind, output in outputs.items()}, grids)

    @classmethod
    def joined(cls, parts: Sequence[Visuals], grids: dict[str, Tensor]) -> Visuals:
        """The visuals of a batch whose pictures were encoded in parts, of each kind in order.

        Args:
            parts: what ``of`` made of each.
            grids: those of the whole batch.
        """
        kinds = dict.fromkeys(kind for part in parts for kind in part.features)
        every = {kind: [part.features[kind] for part in parts if kind in part.features] for kind in kinds}
        return cls({kind: _joined(features) for kind, features in every.items()}, grids)

    def repeat(self, times: int) -> Visuals:
        """The visuals of the batch stacked ``times`` times, all its rows and then all again, uncopied."""
        grids = {name: grid.repeat(times, *[1] * (grid.dim() - 1)) for name, grid in self.grids.items()}
        return Visuals(self.features, grids, times=self.times * times, counts=self.counts)

    def located(self, prompts: Prompts, config: PretrainedConfig) -> Visuals:
        """The visuals of all rows, with the knowledge of which row each picture belongs to.

        Args:
            prompts: the batch whose media were encoded, not stacked.
            config: of the network that encoded them; it names the picture tokens.

        Raises:
            ValueError: the prompts do not hold one picture token for each embedding.
        """
        ids, shows = picture_token_ids(config), prompts.shows
        counts = {kind: (prompts.mask & (prompts.ids == ids[kind])).sum(dim=1) for kind in self.features}
        own = counts if shows is None else {kind: count[_is_new(shows)] for kind, count in counts.items()}
        for kind, features in self.features.items():
            if (found := int(own[kind].sum())) != len(features.tokens):
                raise ValueError(
                    f"the prompts hold {found} {kind} tokens, but {len(features.tokens)} were encoded: "
                    "these are not the pictures of these prompts"
                )
            if shows is not None and not torch.equal(own[kind][shows], counts[kind]):
                raise ValueError(f"rows that show the same {kind}s hold different numbers of {kind} tokens")
        visuals = Visuals(self.features, self.grids, times=self.times, counts=own)
        if shows is None:
            return visuals
        spread = visuals.select(shows)
        assert spread is not None  # no picture would have been encoded
        return spread

    def select(self, rows: Int[Tensor, " rows"]) -> Visuals | None:
        """The visuals of some rows of the stacked batch, in the given order; rows may be left out or repeat.

        Returns:
            The pictures of those rows, or None if the rows hold text alone.

        Raises:
            ValueError: the visuals do not know the rows of their pictures.
        """
        if self.counts is None:
            raise ValueError("these visuals do not know the rows of their pictures: call located() first")
        features: dict[str, Features] = {}
        grids: dict[str, Tensor] = {}
        counts = {kind: count[rows % len(count)] for kind, count in self.counts.items()}
        for kind, count in self.counts.items():
            if not counts[kind].any():
                continue
            features[kind] = self.features[kind].at(places_of_rows(count, rows % len(count)))
            if GRIDS[kind][0] in self.grids:
                unstacked = {name: self._unstacked(name) for name in GRIDS[kind] if name in self.grids}
                entries = entries_per_row(unstacked[GRIDS[kind][0]].prod(dim=1), count)
                places = places_of_rows(entries, rows % len(count))
                grids |= {name: grid[places] for name, grid in unstacked.items()}
        if not features:
            return None
        return Visuals(features, grids, counts={kind: counts[kind] for kind in features})

    def encoder_outputs(self) -> dict[str, ModelOutput]:
        """The argument ``mm_encoder_outputs`` of ``forward`` and ``generate`` of transformers.

        The outputs are new ones at each call, because transformers changes them in place. Stack the batch
        with ``repeat`` before ``generate`` instead of asking it for several sequences: it cannot tell the
        pictures of a flat tensor apart.
        """
        return {kind: _output(features, self.times) for kind, features in self.features.items()}

    def _unstacked(self, name: str) -> Tensor:
        return self.grids[name][: len(self.grids[name]) // self.times]


def picture_token_ids(config: PretrainedConfig) -> dict[str, int]:
    """The tokens that stand for pictures and clips in a prompt, by kind; none for a text model."""
    ids = {kind: getattr(config, f"{kind}_token_id", None) for kind in GRIDS}
    return {kind: token for kind, token in ids.items() if token is not None}


def _is_new(shows: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Whether each row is the first one that shows its pictures."""
    return shows > pad(shows.cummax(0).values, (1, 0), value=-1)[:-1]


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


def _joined(parts: Sequence[Features]) -> Features:
    """All embeddings; those of a single part are not copied."""
    if len(parts) == 1:
        return parts[0]
    deepstack = zip(*(part.deepstack for part in parts), strict=True)
    return Features(
        torch.cat([part.tokens for part in parts]),
        tuple(torch.cat(level) for level in deepstack),
        parts[0].is_list,
    )


def _output(features: Features, times: int) -> _Output:
    tokens = [features.tokens] * times if features.is_list else features.tokens.expand(times, -1, -1)
    return _Output(tokens, [[level] * times for level in features.deepstack] or None)


def _flat(parts: Tensor | Iterable[Tensor]) -> Float[Tensor, "N D"]:
    tensors = [parts] if isinstance(parts, Tensor) else parts
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])
