# SPDX-License-Identifier: Apache-2.0
"""Merging media: hand examples."""

from __future__ import annotations

import pytest
import torch

from ixc_lightning.functional.media import merge_media


def test_pictures_are_joined_in_row_order() -> None:
    rows = [{"pixel_values": torch.full((count, 3, 2, 2), float(row))} for row, count in enumerate((2, 1))]
    assert merge_media(rows)["pixel_values"][:, 0, 0, 0].tolist() == [0.0, 0.0, 1.0]


def test_other_axes_are_filled_with_zeros_at_their_ends() -> None:
    merged = merge_media([{"tiles": torch.ones(1, 3, 1)}, {"tiles": torch.ones(1, 1, 2)}])["tiles"]
    assert merged.tolist() == [[[1, 0], [1, 0], [1, 0]], [[1, 1], [0, 0], [0, 0]]]


def test_a_mask_is_filled_with_false() -> None:
    merged = merge_media([{"mask": torch.ones(1, 1).bool()}, {"mask": torch.ones(1, 2).bool()}])["mask"]
    assert merged.tolist() == [[True, False], [True, True]]


def test_a_row_without_a_key_contributes_nothing() -> None:
    rows = [{}, {"image_grid_thw": torch.tensor([[1, 4, 4]])}, {"video_grid_thw": torch.tensor([[2, 4, 4]])}]
    merged = merge_media(rows)
    assert {name: value.tolist() for name, value in merged.items()} == {
        "image_grid_thw": [[1, 4, 4]],
        "video_grid_thw": [[2, 4, 4]],
    }


@pytest.mark.parametrize("rows", [[], [{}, {}]])
def test_a_text_batch_has_no_media(rows: list[dict[str, torch.Tensor]]) -> None:
    assert merge_media(rows) == {}


def test_the_samples_are_left_alone() -> None:
    rows = [{"x": torch.ones(1, 1)}, {"x": torch.ones(1, 2)}]
    merge_media(rows)["x"].zero_()
    assert [row["x"].sum().item() for row in rows] == [1.0, 2.0]


def test_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pixel_values has \(1, 2\) and \(1, 2, 3\)"):
        merge_media([{"pixel_values": torch.ones(1, 2)}, {"pixel_values": torch.ones(1, 2, 3)}])
