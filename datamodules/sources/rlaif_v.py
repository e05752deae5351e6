# SPDX-License-Identifier: Apache-2.0
"""RLAIF-V: questions about pictures with a more and a less truthful answer, by open models.

Schema of the card of 2024-11: ``image`` as bytes and path, ``question``, ``chosen``, ``rejected``. Nothing is
dropped by the mapping.

VL-RewardBench is drawn from it in part: leave the overlap out before you report that benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, place_media, text_pair, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="rlaif_v",
    home="openbmb/RLAIF-V-Dataset",
    licence="CC-BY-NC-4.0: no commercial use",
    required=("image", "question", "chosen", "rejected"),
    optional=("ds_name", "origin_dataset", "origin_split", "idx", "image_path"),
)


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from RLAIF-V.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips of the pictures, where the rows hold paths; null is the folder of the file.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    with MediaStore(media) as store:
        return convert_rows(DATA, partial(_drafts, store), source, out, limit=limit, on_bad_row=on_bad_row)


def _drafts(store: MediaStore, row: Row) -> Iterator[Draft]:
    media = store.load(row.require("image"), row, "image")
    messages = place_media([user(row.text("question"))], media, row)
    yield text_pair(row.id("idx"), "hallucination", messages, row.text("chosen"), row.text("rejected"))
