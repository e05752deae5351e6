# SPDX-License-Identifier: Apache-2.0
"""MIA-DPO: questions about one of several pictures, with answers that look at the right and at a wrong one.

Schema of the released training files of 2024-10: ``image`` is a list of paths, or one path for a collage or a
picture in picture; ``prompt`` has an ``<image-placeholder>`` for each picture and calls them Image1, Image2
and so on; ``chosen`` and ``rejected`` are texts. The pictures are files of the LLaVA-665k set. Nothing is
dropped by the mapping.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, place_media, text_pair, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="mia_dpo",
    home="laolao77/MIA-DPO",
    licence="CC-BY-NC-4.0: no commercial use",
    required=("image", "prompt", "chosen", "rejected"),
    optional=("id", "gt"),
)
PLACEHOLDER = "<image(?:-placeholder)?>"


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from MIA-DPO.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips of the pictures; null is the folder of the data file.
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
    messages = place_media([user(row.text("prompt"))], media, row, placeholder=PLACEHOLDER)
    yield text_pair(row.id(), "multi_image", messages, row.text("chosen"), row.text("rejected"))
