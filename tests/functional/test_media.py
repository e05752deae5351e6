# SPDX-License-Identifier: Apache-2.0
"""Merging media: hand examples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc_lightning.functional.media import entries_per_row, merge_media, number_alike, places_of_rows


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


counted = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@given(counted, st.data())
def test_the_places_of_rows_equal_a_loop(counts: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=6))
    entries = [row for row, count in enumerate(counts) for _ in range(count)]
    expected = [place for row in rows for place, owner in enumerate(entries) if owner == row]
    found = places_of_rows(torch.tensor(counts), torch.tensor(rows, dtype=torch.long))
    assert found.tolist() == expected


@given(
    st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5).filter(any), st.integers(1, 4)
)
def test_pictures_are_counted_by_the_tokens_of_their_rows(sizes: list[list[int]], merge: int) -> None:
    patches = torch.tensor([size * merge for row in sizes for size in row])
    tokens = torch.tensor([sum(row) for row in sizes])
    assert entries_per_row(patches, tokens).tolist() == [len(row) for row in sizes]


@pytest.mark.parametrize(("patches", "tokens"), [([4, 8], [2, 1]), ([4, 4], [1, 2]), ([4, 5], [1, 1])])
def test_pictures_that_do_not_end_with_their_rows_are_refused(patches: list[int], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        entries_per_row(torch.tensor(patches), torch.tensor(tokens))


def test_samples_are_told_apart_by_every_value_every_name_and_every_type() -> None:
    picture = torch.zeros(1, 3, 40, 40)
    spot = picture.clone()
    spot[0, 2, 39, 39] = 1
    others = [
        {"pixel_values": spot},
        {"pixel_values_videos": picture},
        {"pixel_values": picture, "image_sizes": torch.tensor([[40, 40]])},
        {"pixel_values": picture.view(3, 1, 40, 40)},
        {"pixel_values": picture.double()},
        {},
    ]
    samples = [{"pixel_values": picture}, *others]
    assert number_alike(samples) == [0, 1, 2, 3, 4, 5, 6]
    assert number_alike([*samples, *({k: v.clone() for k, v in one.items()} for one in samples)]) == [
        *range(7),
        *range(7),
    ]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_equal_samples_have_the_number_of_the_first_of_them(levels: list[int]) -> None:
    numbers = number_alike([{"pixel_values": torch.full((1, 5), float(level))} for level in levels])
    order = list(dict.fromkeys(levels))
    assert numbers == [order.index(level) for level in levels]
