# SPDX-License-Identifier: Apache-2.0
"""The training JSON of InternLM-XComposer2.5-Reward, in which its authors publish MMIF-23k.

Schema of the released training code (2025-01). A row has ``conversations_a``, the chosen conversation, and
``conversations_b``, the rejected one, as lists of ``{from: human | bot, value}``, and perhaps ``image``: the
path of a picture or clip, or a list of them. One medium without a place in the text comes first; several
stand at ``<ImageHere>``, as in ``Image1 <ImageHere>; Image2 <ImageHere>; …``.

What the conversations share, up to a message of the user, is the prompt; the rest is the two responses, of
several messages where the conversations part earlier. Rows without such a prompt are dropped.

A file ``data.txt`` lists such files with a factor k each. The shards hold each pair once, in a folder for
each file, and the report holds the factors as weights: how often a pair is seen is decided when sets are
mixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_turns, shared_prefix
from ixc_lightning.datamodules.sources._drafts import Draft, place_media
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row
from ixc_lightning.types import InputError

DATA = DataSet(
    name="ixc",
    home="ChrisDing1105/MMIF-23k",
    licence="that of the data in the file; read the card of the set that it is from",
    required=("conversations_a", "conversations_b"),
    optional=("id", "image", "turn", "language", "model_a", "model_b"),
)
PLACEHOLDER = "<ImageHere>"


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from the training JSON of InternLM-XComposer2.5-Reward.

    Args:
        source: a JSON or JSON Lines file, a folder, a pattern or a hub id; or ``data.txt``, whose lines name
            a file and its factor.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips below which ``image`` lies; null is the folder of the data file.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    listed = read_list(Path(source)) if source.endswith(".txt") else {}
    subsets = {str(path): path.stem for path in listed}
    weights = {path.stem: factor for path, factor in listed.items()}
    with MediaStore(media) as store:
        return convert_rows(
            DATA,
            partial(_drafts, store, subsets),
            source,
            out,
            files=list(listed) or None,
            weights=weights,
            limit=limit,
            on_bad_row=on_bad_row,
        )


def read_list(path: Path) -> dict[Path, float]:
    """Return the files of a ``data.txt`` with their factors.

    Args:
        path: each line has a path, relative to this file or to the working directory, and a factor.

    Raises:
        InputError: naming the line, if it is no such line, the file is missing, or its name comes twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; name the data.txt or a JSON file")
    listed: dict[Path, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, factor = line.strip().rpartition(" ")
        try:
            weight = float(factor)
        except ValueError:
            weight = 0.0
        if not name or not weight > 0:
            raise InputError(f"{path}, line {number}: must be a path and a positive factor, not {line!r}")
        found = next(
            (place for place in (path.parent / name.strip(), Path(name.strip())) if place.is_file()), None
        )
        if found is None:
            raise InputError(f"{path}, line {number}: no file {name!r} here or in {path.parent}")
        if found.stem in {other.stem for other in listed}:
            raise InputError(f"{path}, line {number}: a file named {found.stem!r} comes twice; rename one")
        listed[found] = weight
    return listed


def _drafts(store: MediaStore, subsets: dict[str, str], row: Row) -> Iterator[Draft]:
    pair = shared_prefix(
        *(read_turns(row.require(name), row, name) for name in ("conversations_a", "conversations_b"))
    )
    media = store.load(row.get("image"), row, "image")
    yield Draft(
        id=row.id(),
        domain=Path(row.file).name.split(".")[0],
        messages=place_media(pair.messages, media, row, placeholder=PLACEHOLDER),
        chosen=pair.chosen,
        rejected=pair.rejected,
        subset=subsets.get(row.file, ""),
    )
