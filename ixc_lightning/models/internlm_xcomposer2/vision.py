# SPDX-License-Identifier: Apache-2.0
"""From tile features to image tokens: merging, separators, stitching, projection."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ixc_lightning.models.internlm_xcomposer2.configuration import InternLMXComposer2Config

MERGE = 2
"""Patches on either side of the square that a token covers."""
PATCH = 14
"""Side of a patch in pixels, in every released size."""


def num_image_tokens(rows: int, columns: int, *, side: int) -> int:
    """Tokens of an image of rows × columns tiles, whose tiles have side × side merged tokens each.

    Each row of tokens of the global view and of the stitched tiles ends with a separator, and one stands
    between the two: (rows · columns + 1) · side² + 1 + (rows + 1) · side.

    Example:
        >>> num_image_tokens(2, 3, side=20)
        2861
    """
    return (rows * columns + 1) * side**2 + 1 + (rows + 1) * side


class InternLMXComposer2Projector(nn.Module):
    """Arranges the features of tiles as image tokens and projects them to the language model's width.

    The two separators are learned vectors of merged features, and pass through the projection like them.
    """

    def __init__(self, config: InternLMXComposer2Config) -> None:
        super().__init__()
        merged = config.vision_config.hidden_size * MERGE**2
        width = config.text_config.hidden_size
        self.global_separator = nn.Parameter(torch.zeros(merged))
        self.row_separator = nn.Parameter(torch.zeros(merged))
        self.linear_1 = nn.Linear(merged, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "N merged"]) -> Float[Tensor, "N D"]:
        """Project arranged tokens."""
        return self.linear_2(self.act(self.linear_1(tokens)))

    def arrange(
        self, patches: Float[Tensor, "tiles patches width"], grids: Int[Tensor, "images 2"]
    ) -> list[Float[Tensor, "N merged"]]:
        """The tokens of each image before the projection.

        Args:
            patches: the vision tower's states, tile by tile: of each image the global view, then its tiles
                row by row.
            grids: rows and columns of tiles of each image.

        Raises:
            ValueError: if the grids do not account for the tiles.
        """
        views = self._merge(patches)
        counts = (grids.prod(-1) + 1).tolist()
        if sum(counts) != len(views):
            raise ValueError(f"image_grid_hw accounts for {sum(counts)} tiles, but there are {len(views)}")
        return [
            self._arrange_one(view, *grid)
            for view, grid in zip(views.split(counts), grids.tolist(), strict=True)
        ]

    def _merge(
        self, patches: Float[Tensor, "tiles patches width"]
    ) -> Float[Tensor, "tiles side side merged"]:
        """Concatenate the features of 2 × 2 patches, in the order top left, top right, bottom left, right."""
        tiles, count, width = patches.shape
        side = round(count**0.5) // MERGE
        squares = patches.view(tiles, side, MERGE, side, MERGE, width).permute(0, 1, 3, 2, 4, 5)
        return squares.reshape(tiles, side, side, MERGE**2 * width)

    def _arrange_one(
        self, views: Float[Tensor, "tiles side side merged"], rows: int, columns: int
    ) -> Float[Tensor, "N merged"]:
        side, merged = views.shape[1], views.shape[3]
        tiles = views[1:].view(rows, columns, side, side, merged).transpose(1, 2)
        stitched = tiles.reshape(rows * side, columns * side, merged)
        return torch.cat(
            (self._end_rows(views[0]), self.global_separator[None].to(views.dtype), self._end_rows(stitched))
        )

    def _end_rows(self, tokens: Float[Tensor, "height width merged"]) -> Float[Tensor, "N merged"]:
        ends = self.row_separator.to(tokens.dtype).expand(len(tokens), 1, -1)
        return torch.cat((tokens, ends), dim=1).flatten(0, 1)
