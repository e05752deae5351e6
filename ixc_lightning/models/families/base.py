# SPDX-License-Identifier: Apache-2.0
"""The ordinary vision-language model of transformers: what a family does unless its own file differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ixc_lightning.functional.media import runs_within
from ixc_lightning.types import InputError

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The processor's name of the pixels of each kind of picture."""


class Family:
    """Where the parts of a model sit, how its pictures are encoded, and which positions its tokens have.

    A family has no state: every method is given the transformers *base model* (the multi-modal one, without
    language head).
    """

    vision_names = ("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "video_tower")
    projector_names = (
        "multi_modal_projector",
        "connector",
        "aligner",
        "embed_vision",
        "image_newline",  # a bare parameter, part of the features of LLaVA-OneVision
        "visual.merger",
        "visual.deepstack_merger_list",
    )
    position_media: tuple[str, ...] = ()
    """The media that ``positions`` needs, by processor name."""

    def vision(self, base: PreTrainedModel) -> list[nn.Module]:
        """The vision towers; a projector inside a tower is part of both lists."""
        return [part for part in _attributes(base, self.vision_names) if isinstance(part, nn.Module)]

    def projector(self, base: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        """The modules, and bare parameters, that turn tower states into token embeddings."""
        return list(_attributes(base, self.projector_names))

    def encode(self, base: PreTrainedModel, media: Mapping[str, Tensor]) -> dict[str, ModelOutput]:
        """Encode the pictures and clips.

        Returns:
            By kind, ``image`` and ``video``, what the model's own ``get_<kind>_features`` gives.

        Raises:
            InputError: if the family does not take this kind of picture.
        """
        return {kind: self.features(base, kind, media) for kind, pixels in PIXELS.items() if pixels in media}

    def features(self, base: PreTrainedModel, kind: str, media: Mapping[str, Tensor]) -> ModelOutput:
        """Encode one kind of picture with those of the media that the model's encoder knows."""
        encoder = _encoder(base, kind)
        return encoder(**_known(encoder, media), return_dict=True)

    def parts(
        self, base: PreTrainedModel, media: Mapping[str, Tensor], *, patches: int
    ) -> Iterator[dict[str, Tensor]]:
        """The media of a batch in parts that can be encoded one after the other, each of one kind.

        Args:
            base: the base model.
            media: as for ``encode``.
            patches: most of the tower's patches of one part; a picture or clip that has more is one alone.

        Raises:
            InputError: as ``encode``; or it cannot be told which media belong to which picture.
        """
        for kind, pixels in PIXELS.items():
            if pixels not in media:
                continue
            own = _known(_encoder(base, kind), media)
            rows = self.rows(kind, media)
            sizes = _sums(self.row_patches(base, media[pixels]), rows)
            yield from _cut(own, rows, runs_within(sizes.tolist(), patches), name=type(base).__name__)

    def rows(self, kind: str, media: Mapping[str, Tensor]) -> Int[Tensor, " pictures"]:
        """How many entries of the pixels, along their first axis, each picture has; here one."""
        pixels = media[PIXELS[kind]]
        return torch.ones(len(pixels), dtype=torch.long, device=pixels.device)

    def row_patches(self, base: PreTrainedModel, pixels: Float[Tensor, "rows ..."]) -> Int[Tensor, " rows"]:
        """How many patches the tower makes of each entry of the pixels.

        An entry may hold several tiles or frames, of which those that are 0 everywhere only fill up; or be
        cut into patches already, with one axis of numbers behind those.

        Raises:
            InputError: the model's config does not name its ``patch_size``.
        """
        if pixels.dim() < 4:
            return torch.full(pixels.shape[:1], pixels.shape[1:-1].numel(), device=pixels.device)
        sides = getattr(getattr(base.config, "vision_config", None), "patch_size", None)
        if sides is None:
            raise InputError(
                f"vision_patches_at_once: the config of {type(base).__name__} names no vision patch_size by "
                "which patches could be counted; set it to null"
            )
        height, width = sides if isinstance(sides, (list, tuple)) else (sides, sides)
        patches = pixels.shape[-2] * pixels.shape[-1] // (height * width)
        tiles = pixels.flatten(1, -4) if pixels.dim() > 4 else pixels.unsqueeze(1)
        return tiles.flatten(2).any(-1).sum(1).clamp(min=1) * patches

    def positions(
        self,
        base: PreTrainedModel,
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        token_types: Mapping[str, Int[Tensor, "B L"]],
        media: Mapping[str, Tensor],
    ) -> Int[Tensor, "*rows B L"]:
        """Position ids that count real tokens from 0, so that padding on either side leaves them alone."""
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    def blocks(self, token_types: Mapping[str, Int[Tensor, "1 L"]]) -> Int[Tensor, " L"] | None:
        """Number of the block of each token, −1 for none, whose tokens see each other in both directions.

        None where every token sees only those before it.
        """
        return None

    def logits(self, network: PreTrainedModel, hidden: Float[Tensor, "*L D"]) -> Float[Tensor, "*L V"]:
        """Apply the language head, and the soft cap c·tanh(z / c) where the text config has one."""
        logits = network.get_output_embeddings()(hidden)
        cap = getattr(network.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _attributes(base: PreTrainedModel, names: tuple[str, ...]) -> Iterator[nn.Module | nn.Parameter]:
    for name in names:
        part: object = base
        for step in name.split("."):
            part = getattr(part, step, None)
        if isinstance(part, (nn.Module, nn.Parameter)):
            yield part


def _encoder(base: PreTrainedModel, kind: str) -> Callable[..., ModelOutput]:
    """What the model encodes one kind of picture with."""
    encoder = getattr(base, f"get_{kind}_features", None)
    if encoder is None:
        raise InputError(
            f"{type(base).__name__} takes no {kind}s, but the batch holds {PIXELS[kind]}: "
            f"leave {kind} samples out, or choose another model"
        )
    return encoder


def _known(encoder: Callable[..., ModelOutput], media: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the media that an encoder takes."""
    known = signature(encoder).parameters
    return {name: value for name, value in media.items() if name in known}


def _sums(values: Int[Tensor, " rows"], counts: Int[Tensor, " groups"]) -> Int[Tensor, " groups"]:
    """The sum of each group of neighbours."""
    totals = pad(values.cumsum(0), (1, 0))[pad(counts.cumsum(0), (1, 0))]
    return totals.diff()


def _cut(
    media: Mapping[str, Tensor], rows: Int[Tensor, " pictures"], runs: list[int], *, name: str
) -> Iterator[dict[str, Tensor]]:
    """Media cut into runs of pictures: tensors of one entry a picture, and of one entry a row."""
    row_runs = [int(run.sum()) for run in rows.split(runs)]
    cuts = {len(rows): runs, sum(row_runs): row_runs}
    if other := [f"{key} {tuple(value.shape)}" for key, value in media.items() if len(value) not in cuts]:
        raise InputError(
            f"vision_patches_at_once: {len(rows)} pictures of {name} cannot be told apart in "
            f"{', '.join(other)}; set it to null, which encodes all pictures of a batch together"
        )
    pieces = zip(*(value.split(cuts[len(value)]) for value in media.values()), strict=True)
    return (dict(zip(media, piece, strict=True)) for piece in pieces)
