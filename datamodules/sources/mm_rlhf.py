# SPDX-License-Identifier: Apache-2.0
"""MM-RLHF: rankings by people of answers about pictures and clips.

Schema of ``dpo_pairs.jsonl`` of 2025-02: ``image`` or ``video`` is a path, ``prompt``, ``chosen`` and
``rejected`` are texts. A path may name a folder of JPEG frames; they become one clip that holds their bytes
as they are. The domain is the first folder of the path (long, short, mcq, safety, video). Nothing is dropped
by the mapping.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, place_media, text_pair, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="mm_rlhf",
    home="yifanzhang114/MM-RLHF",
    licence="none on its card; read those of the sets that the pictures and clips are from",
    required=("prompt", "chosen", "rejected"),
    optional=("id", "image", "video", "chosen_reason", "rejected_reason", "chosen_score", "rejected_score"),
)
DOMAINS = ("long", "short", "mcq", "safety", "video")


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    frames_per_second: int = 1,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from MM-RLHF, which has pictures and clips.

    Args:
        source: ``dpo_pairs.jsonl``, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips below which the paths lie; null is the folder of the data file.
        frames_per_second: rate of clips that are folders of frames, which do not tell it.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    with MediaStore(media, fps=frames_per_second) as store:
        return convert_rows(
            DATA,
            partial(_drafts, store),
            source,
            out,
            settings={"frames_per_second": frames_per_second},
            limit=limit,
            on_bad_row=on_bad_row,
        )


def _drafts(store: MediaStore, row: Row) -> Iterator[Draft]:
    field = "video" if row.get("video") else "image"
    media = store.load(row.require(field), row, field)
    messages = place_media([user(row.text("prompt"))], media, row)
    folders = PurePosixPath(str(row.get(field))).parts
    domain = next((part for part in folders if part in DOMAINS), field)
    yield text_pair(row.id(), domain, messages, row.text("chosen"), row.text("rejected"))
