# SPDX-License-Identifier: Apache-2.0
"""HHH alignment: 221 hand-written comparisons of helpful, honest and harmless answers.

It is made to evaluate: the first RewardBench has it among its prior sets. The paper trains on it all the
same; who does so leaves that number out of reports.

Schema of the card of 2023: ``input``, which may hold several turns, and ``targets`` with two ``choices`` and
their ``labels``; the choice with label 1 is chosen. The domain is the configuration (harmless, helpful,
honest, other), taken from the folder or name of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import SPEAKER, read_transcript
from ixc_lightning.datamodules.sources._drafts import Draft, Turn, text_pair
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="hhh",
    home="HuggingFaceH4/hhh_alignment",
    licence="Apache-2.0 by its card; not verified",
    required=("input", "targets"),
)
CONFIGURATIONS = ("harmless", "helpful", "honest", "other")


def convert(source: str, out: str, *, limit: int | None = None, on_bad_row: OnBadRow = "raise") -> Report:
    """Write preference shards from HHH alignment, which is an evaluation set.

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
    targets = row.require("targets")
    fields = targets if isinstance(targets, dict) else {}
    choices, labels = fields.get("choices"), fields.get("labels")
    texts = isinstance(choices, list) and [type(choice) for choice in choices] == [str, str]
    if choices is None or not texts or labels not in ([0, 1], [1, 0]):
        raise row.error("targets", "must have two choices, and labels of which one is 1 and one is 0")
    better = labels.index(1)
    turns = _turns(row.text("input"))
    yield text_pair(row.id(), _domain(row), turns, choices[better], choices[1 - better])


def _turns(text: str) -> list[Turn]:
    # The last speaker stands there without words, and the first words without their speaker.
    text = re.sub(r"\n\nAssistant:\s*$", "", text)
    return read_transcript(text if SPEAKER.match(text) else f"\n\nHuman: {text}")


def _domain(row: Row) -> str:
    words = re.split(r"[^a-z]+", "/".join(Path(row.file).parts[-3:]).lower())
    return next((name for name in CONFIGURATIONS if name in words), "alignment")
