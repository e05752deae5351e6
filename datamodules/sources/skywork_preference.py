# SPDX-License-Identifier: Apache-2.0
"""Skywork Reward Preference 80K: strong text pairs, chosen from several public sets.

Schema of v0.2 (2024-10), the version without overlap with RewardBench. ``chosen`` and ``rejected`` are whole
conversations, equal but for the last message; ``source`` names the set, and becomes the domain. Rows whose
conversations differ earlier are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_pair
from ixc_lightning.datamodules.sources._drafts import Draft
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="skywork_preference",
    home="Skywork/Skywork-Reward-Preference-80K-v0.2",
    licence="that of the sets it is drawn from; read its card",
    required=("chosen", "rejected"),
    optional=("source",),
)


def convert(source: str, out: str, *, limit: int | None = None, on_bad_row: OnBadRow = "raise") -> Report:
    """Write preference shards from Skywork Reward Preference.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    return convert_rows(DATA, _drafts, source, out, limit=limit, on_bad_row=on_bad_row)


def _drafts(row: Row) -> Iterator[Draft]:
    yield Draft(row.id(), row.get("source") or "general", *read_pair(row))
