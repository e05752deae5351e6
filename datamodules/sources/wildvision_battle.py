# SPDX-License-Identifier: Apache-2.0
"""WildVision-Battle: votes of people between two models about a picture of their own.

Schema of the maintainers' internal card; the columns of the public repository were not verified.
``conversation_a`` and ``conversation_b`` are lists of ``{role, content}``, ``image`` is one picture, and
``winner`` is model_a, model_b, tie or tie (bothbad). Ties are dropped.

After the first turn the two conversations hold different answers. By default such dialogues are dropped;
``multi_turn: keep`` takes the first question as the prompt, and all that follows as the response.

VL-RewardBench is drawn from it in part: leave the overlap out before you report that benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, TypeAlias

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_turns, shared_prefix
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, place_media
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="wildvision_battle",
    home="WildVision/wildvision-battle",
    licence="ODC-BY 1.0; the pictures are their users'",
    required=("conversation_a", "conversation_b", "winner", "image"),
    optional=(
        *("question_id", "model_a", "model_b", "language", "turn", "anony", "tstamp", "judge", "domain"),
        "metadata",
    ),
)
TIES = ("tie", "tie (bothbad)")
MultiTurn: TypeAlias = Literal["drop", "keep"]


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    multi_turn: MultiTurn = "drop",
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from WildVision-Battle.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips of the pictures, where the rows hold paths; null is the folder of the file.
        multi_turn: drop leaves dialogues of several turns out; keep scores them whole.
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
            partial(_drafts, store, multi_turn),
            source,
            out,
            settings={"multi_turn": multi_turn},
            limit=limit,
            on_bad_row=on_bad_row,
        )


def _drafts(store: MediaStore, multi_turn: MultiTurn, row: Row) -> Iterator[Draft]:
    winner = row.text("winner")
    if winner in TIES:
        raise Dropped("the vote is a tie")
    if winner not in ("model_a", "model_b"):
        raise row.error("winner", f"must be model_a, model_b or one of {TIES}, not {winner!r}")
    names = ["conversation_a", "conversation_b"]
    if winner == "model_b":
        names.reverse()
    pair = shared_prefix(*(read_turns(row.require(name), row, name) for name in names))
    if multi_turn == "drop" and max(len(pair.chosen), len(pair.rejected)) > 1:
        raise Dropped("the dialogue has several turns")
    media = store.load(row.get("image"), row, "image")
    messages = place_media(pair.messages, media, row)
    yield Draft(row.id("question_id"), "general", messages, pair.chosen, pair.rejected)
