# SPDX-License-Identifier: Apache-2.0
"""VLFeedback: four responses to a question about a picture, rated by GPT-4V.

Schema of the card of 2023-12: ``prompt``, ``img_path``, and ``completions``, each with a response and ratings
of Helpfulness, Ethical Considerations and Visual Faithfulness as strings. JSON Lines hold a list of
completions, Parquet one completion of lists; both are read. The rating of a response is the mean of the
aspects that have a number. The best and the worst are the pair, or every two that are far enough apart.
Dropped are rows whose ratings are equal, closer than asked for, or fewer than two.

VL-RewardBench is drawn from it in part: leave the overlap out before you report that benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, TypeAlias

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, place_media, text_pair, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._pairs import all_pairs, best_and_worst, read_completion
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="vlfeedback",
    home="MMInstruction/VLFeedback",
    licence="none on its card; the ratings are by GPT-4V, so take it for non-commercial",
    required=("prompt", "completions"),
    optional=("id", "img_path", "image", "models"),
)
Pairs: TypeAlias = Literal["best_worst", "all"]


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    pairs: Pairs = "best_worst",
    min_gap: float = 0.0,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from VLFeedback.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips below which ``img_path`` lies, such as ``merged_images.zip``; null is the
            folder of the data file.
        pairs: best_worst gives one pair a row; all gives every two responses.
        min_gap: how far apart the mean ratings must at least be; equal ones are never a pair.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    with MediaStore(media) as store:
        return convert_rows(
            DATA,
            partial(_drafts, store, pairs, min_gap),
            source,
            out,
            settings={"pairs": pairs, "min_gap": min_gap},
            limit=limit,
            on_bad_row=on_bad_row,
        )


def _drafts(store: MediaStore, pairs: Pairs, min_gap: float, row: Row) -> Iterator[Draft]:
    completions = [read_completion(completion, row) for completion in _as_list(row.require("completions"))]
    ratings = [rating for _, rating in completions]
    places = (
        all_pairs(ratings, min_gap=min_gap) if pairs == "all" else [best_and_worst(ratings, min_gap=min_gap)]
    )
    field = "image" if row.get("image") is not None else "img_path"
    media = store.load(row.require(field), row, field)
    messages = place_media([user(row.text("prompt"))], media, row)
    for pair in places:
        name = row.id() if pairs == "best_worst" else f"{row.id()}-{pair[0]}-{pair[1]}"
        texts = [completions[place][0] for place in pair]
        yield text_pair(name, "general", messages, *texts)


def _as_list(completions: Any) -> list[Any]:
    """Return the completions one by one, where the set was stored as one completion of lists."""
    if isinstance(completions, list):
        return completions
    responses = completions.get("response") if isinstance(completions, dict) else None
    return [_pick(completions, place) for place in range(len(responses or ()))]


def _pick(value: Any, place: int) -> Any:
    if isinstance(value, dict):
        return {name: _pick(item, place) for name, item in value.items()}
    return value[place] if isinstance(value, list) and place < len(value) else None
