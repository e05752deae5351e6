# SPDX-License-Identifier: Apache-2.0
"""TRL's preference format, of any data set that follows it.

Schema of TRL 1.x. Standard: ``prompt``, ``chosen`` and ``rejected`` are strings. Conversational: they are
lists of messages, whose content is a string or a list of parts. With an implicit prompt there is no
``prompt``, and what ``chosen`` and ``rejected`` share is the prompt; of strings, up to the last whole word.
``images`` (or ``image``) holds the media of the parts ``{"type": "image"}``; without such parts they come
first.

Dropped are pairs without a common prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import takewhile

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import Pair, read_turns, shared_prefix
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, Turn, assistant, place_media, user
from ixc_lightning.datamodules.sources._files import name_of
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="trl",
    home="any data set in TRL's preference format",
    licence="that of the data set",
    required=("chosen", "rejected"),
    optional=("id", "prompt", "images", "image"),
)


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    name: str | None = None,
    domain: str = "general",
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from TRL's preference format.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips of the pictures, where the rows hold paths; null is the folder of the file.
        name: of the data set, for the records; null takes it from the source.
        domain: task domain of the records.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    data = DATA._replace(name=name or name_of(source))
    with MediaStore(media) as store:
        return convert_rows(
            data,
            partial(_drafts, store, domain),
            source,
            out,
            settings={"domain": domain},
            limit=limit,
            on_bad_row=on_bad_row,
        )


def _drafts(store: MediaStore, domain: str, row: Row) -> Iterator[Draft]:
    pair = _standard(row) if isinstance(row.get("chosen"), str) else _conversational(row)
    field = "images" if row.get("images") is not None else "image"
    media = store.load(row.get(field), row, field)
    yield Draft(row.id(), domain, place_media(pair.messages, media, row), pair.chosen, pair.rejected)


def _standard(row: Row) -> Pair:
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if row.get("prompt") is None:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        shared = "".join(letter for letter, _ in same)
        # Words that merely start alike belong to the responses.
        shared = shared[: max((place for place, letter in enumerate(shared) if letter.isspace()), default=0)]
        if not shared.strip():
            raise Dropped("the responses share no prompt")
        ends = [[assistant(text[len(shared) :])] for text in (chosen, rejected)]
        return Pair([user(shared)], *ends)
    return Pair(_prompt(row), [assistant(chosen)], [assistant(rejected)])


def _conversational(row: Row) -> Pair:
    chosen, rejected = (read_turns(row.require(name), row, name) for name in ("chosen", "rejected"))
    # Some sets give the prompt and whole conversations too.
    if row.get("prompt") is None or chosen[0].role != "assistant":
        return shared_prefix(chosen, rejected)
    return Pair(_prompt(row), chosen, rejected)


def _prompt(row: Row) -> list[Turn]:
    prompt = row.require("prompt")
    return [user(prompt)] if isinstance(prompt, str) else read_turns(prompt, row, "prompt")
