# SPDX-License-Identifier: Apache-2.0
"""PKU-SafeRLHF: pairs labelled twice, by helpfulness and by harmlessness.

Schema of the card of 2024-06: ``prompt``, ``response_0`` and ``response_1``, whether each is safe,
``better_response_id`` (more helpful) and ``safer_response_id``.

By default the safer response is chosen, and a pair is kept if the more helpful one is the same, or exactly
one of the two is safe; the others are dropped, because the two labels pull apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, TypeAlias

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, text_pair, user
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="pku_saferlhf",
    home="PKU-Alignment/PKU-SafeRLHF",
    licence="CC-BY-NC-4.0: no commercial use",
    required=(
        *("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"),
        *("better_response_id", "safer_response_id"),
    ),
    optional=(
        *("prompt_source", "response_0_source", "response_1_source"),
        *("response_0_harm_category", "response_1_harm_category"),
        *("response_0_severity_level", "response_1_severity_level"),
        *("response_0_sha256", "response_1_sha256"),
    ),
)
Label: TypeAlias = Literal["safer", "better"]


def convert(
    source: str,
    out: str,
    *,
    label: Label = "safer",
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from PKU-SafeRLHF.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        label: safer chooses the safer response where helpfulness agrees or exactly one is safe; better
            chooses the more helpful response of every pair, harmful or not.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    drafts, settings = partial(_drafts, label), {"label": label}
    return convert_rows(DATA, drafts, source, out, settings=settings, limit=limit, on_bad_row=on_bad_row)


def _drafts(label: Label, row: Row) -> Iterator[Draft]:
    better, safer = (row.integer(f"{name}_response_id", (0, 1)) for name in ("better", "safer"))
    one_is_safe = bool(row.get("is_response_0_safe")) != bool(row.get("is_response_1_safe"))
    if label == "safer" and safer != better and not one_is_safe:
        raise Dropped("the more helpful response is the less safe one")
    chosen = safer if label == "safer" else better
    texts = [row.text(f"response_{place}") for place in (chosen, 1 - chosen)]
    yield text_pair(row.id(), "safety", [user(row.text("prompt"))], *texts)
