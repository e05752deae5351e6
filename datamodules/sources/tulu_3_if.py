# SPDX-License-Identifier: Apache-2.0
"""Tulu 3 IF: instructions with constraints that can be checked, and responses of many models.

Schema of the card of 2024-11. ``chosen`` and ``rejected`` are whole conversations, equal but for the last
message, which is the response. Rows whose conversations differ earlier are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_pair
from ixc_lightning.datamodules.sources._drafts import Draft
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="tulu_3_if",
    home="allenai/tulu-3-IF-augmented-on-policy-8b",
    licence="ODC-BY 1.0; the responses are under the terms of the models that wrote them",
    required=("chosen", "rejected"),
    optional=("id", "prompt", "source", "chosen_model", "rejected_model"),
)


def convert(source: str, out: str, *, limit: int | None = None, on_bad_row: OnBadRow = "raise") -> Report:
    """Write preference shards from Tulu 3 IF.

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
    yield Draft(row.id(), "instruction_following", *read_pair(row))
