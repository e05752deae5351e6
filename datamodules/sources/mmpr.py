# SPDX-License-Identifier: Apache-2.0
"""MMPR: three million pairs of reasoning about pictures, made by sampling and by verifiers.

Schema of v1.2 (2025-04): JSON Lines with ``image`` (a path, a list, or nothing), ``question`` with an
``<image>`` for each picture, ``chosen`` and ``rejected``. Nothing is dropped by the mapping.

``meta.json`` lists the files of the set, each with ``annotation``, ``root`` of its pictures, and
``repeat_time``. Named as the source, it gives a folder for each entry, and ``repeat_time`` as weight in the
report. Its paths start at the folder above the set; this was not verified against the release.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, place_media, text_pair, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row
from ixc_lightning.types import InputError

DATA = DataSet(
    name="mmpr",
    home="OpenGVLab/MMPR-v1.2",
    licence="MIT",
    required=("question", "chosen", "rejected"),
    optional=("id", "image", "answer_gt", "meta", "task", "chosen_reward", "rejected_reward"),
)
META = "meta.json"


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from MMPR.

    Args:
        source: ``meta.json``, or a JSON Lines file, a folder or a pattern of annotations.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips below which ``image`` lies; null is what ``meta.json`` says, or the folder of
            the data file.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    path = Path(source)
    entries = read_meta(path) if path.name == META else {}
    finish = partial(convert_rows, DATA, source=source, out=out, limit=limit, on_bad_row=on_bad_row)
    with ExitStack() as stack:
        if not entries:
            store = stack.enter_context(MediaStore(media))
            return finish(partial(_drafts, lambda _: store, lambda _: ""))
        stores = {
            str(file): stack.enter_context(MediaStore(media or str(entry["root"])))
            for file, entry in entries.items()
        }
        names = {str(file): entry["name"] for file, entry in entries.items()}
        return finish(
            partial(_drafts, stores.__getitem__, names.__getitem__),
            files=list(entries),
            weights={entry["name"]: float(entry.get("repeat_time", 1)) for entry in entries.values()},
        )


def read_meta(path: Path) -> dict[Path, dict[str, Any]]:
    """Return the entries of a ``meta.json`` by the file of their annotations, with their names.

    Args:
        path: the file; its paths start at the folder above its own.

    Raises:
        InputError: naming the entry, if it has no annotation or root, or its file is missing.
    """
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); name the set's meta.json") from None
    found = {}
    base = path.absolute().parents[1]
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"annotation", "root"} <= entry.keys():
            raise InputError(f"{path}, {name}: must have annotation and root; name the set's meta.json")
        for place in (str(entry["annotation"]), str(entry["root"])):
            if place.startswith("/") or ".." in Path(place).parts:
                raise InputError(f"{path}, {name}: {place!r} leads out of the folder of the set; correct it")
        file = base / entry["annotation"]
        if not file.is_file():
            raise InputError(f"{path}, {name}: no file {file}; unpack annotations.zip into its folder")
        found[file] = {
            **entry,
            "name": name.replace("/", "-").replace(".", "-"),
            "root": base / entry["root"],
        }
    return found


def _drafts(
    store_of: Callable[[str], MediaStore], subset_of: Callable[[str], str], row: Row
) -> Iterator[Draft]:
    media = store_of(row.file).load(row.get("image"), row, "image")
    messages = place_media([user(row.text("question"))], media, row)
    texts = row.text("chosen"), row.text("rejected")
    yield text_pair(row.id(), "reasoning", messages, *texts, subset=subset_of(row.file))
