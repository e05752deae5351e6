# SPDX-License-Identifier: Apache-2.0
r"""Anthropic HH-RLHF: dialogues that end with a better and a worse answer.

Schema of the card of 2022: ``chosen`` and ``rejected`` are whole transcripts,
``\n\nHuman: …\n\nAssistant: …``. Both are parsed, and their last turns are the pair. Dropped are transcripts
that differ before the last response, end with the human, or let one speaker go twice. The domain is the first
word of the folder (harmless or helpful); the folder ``red-team-attempts`` has other columns, and is passed
over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_transcript, shared_prefix, single_response
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, Turn
from ixc_lightning.datamodules.sources._files import find_files
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="hh_rlhf",
    home="Anthropic/hh-rlhf",
    licence="MIT",
    required=("chosen", "rejected"),
)
RED_TEAM = "red-team-attempts"


def convert(source: str, out: str, *, limit: int | None = None, on_bad_row: OnBadRow = "raise") -> Report:
    """Write preference shards from HH-RLHF.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id. Name one split:
            ``hh-rlhf/*/train.jsonl.gz``.
        out: folder to write; it must not exist, or be empty.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    files = (path for path in find_files(source) if RED_TEAM not in path.parts)
    return convert_rows(DATA, _drafts, source, out, files=files, limit=limit, on_bad_row=on_bad_row)


def _drafts(row: Row) -> Iterator[Draft]:
    turns = [_alternating(read_transcript(row.text(name))) for name in ("chosen", "rejected")]
    yield Draft(row.id(), _domain(row), *single_response(shared_prefix(*turns)))


def _alternating(turns: Sequence[Turn]) -> Sequence[Turn]:
    if turns[0].role != "user" or any(left.role == right.role for left, right in pairwise(turns)):
        raise Dropped("the speakers do not take turns")
    return turns


def _domain(row: Row) -> str:
    folders = [part.split("-")[0] for part in Path(row.file).parts[-3:-1]]
    return next((name for name in folders if name in ("harmless", "helpful")), "dialogue")
