# SPDX-License-Identifier: Apache-2.0
"""Instruction data of any source: for supervised fine-tuning, or as prompts for reinforcement learning.

A row holds a conversation, as a list of ``{role, content}``, ``{from, value}`` or ``{user, assistant}``, or a
question and its answer in two columns; and perhaps media. Columns that have a usual name are found by it:

    conversation   messages, conversations, conversation, texts
    question       question, instruction, prompt, query, problem
    answer         answer, response, output, solution, label
    media          images, image, image_path, img_path, videos, video, video_path

Media stand at ``<image>`` and ``<video>`` in the text, or come first. An instruction record is the whole
conversation; turns of the user behind the last answer are cut. A prompt record ends before the last answer,
which becomes its ``answer``. Rows without an answer are dropped as instructions, and are prompts without
``answer``.

It serves the sets from which the paper draws its new data (KVQA, A-OKVQA, PMC-VQA, AI2D, IconQA, TQA,
ChartQA, DVQA, ScienceQA, GeoQA, CLEVR-Math, Super-CLEVR, TabMWP, and the clips of TrafficQA, FunQA and
MiraData) in the forms in which they are commonly published for fine-tuning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_turns
from ixc_lightning.datamodules.sources._drafts import (
    PLACEHOLDER,
    Draft,
    Dropped,
    Turn,
    assistant,
    place_media,
    user,
)
from ixc_lightning.datamodules.sources._files import find_files, name_of
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row, read_rows
from ixc_lightning.types import InputError

DATA = DataSet(
    name="instructions",
    home="any instruction data",
    licence="that of the data set",
    required=(),
)
CONVERSATIONS = ("messages", "conversations", "conversation", "texts")
QUESTIONS = ("question", "instruction", "prompt", "query", "problem")
ANSWERS = ("answer", "response", "output", "solution", "label")
MEDIA = ("images", "image", "image_path", "img_path", "videos", "video", "video_path")
KindName: TypeAlias = Literal["instruction", "prompt"]


class Columns(NamedTuple):
    """Which column holds what; null where none does."""

    conversation: str | None
    question: str | None
    answer: str | None
    media: str | None
    id: str
    domain: str | None


def convert(
    source: str,
    out: str,
    *,
    kind: KindName = "instruction",
    name: str | None = None,
    domain: str = "general",
    domain_field: str | None = None,
    messages_field: str | None = None,
    question_field: str | None = None,
    answer_field: str | None = None,
    media_field: str | None = None,
    id_field: str = "id",
    placeholder: str | None = None,
    media: str | list[str] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write instruction or prompt shards from conversations, or from questions and answers.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        kind: instruction for supervised fine-tuning, prompt for reinforcement learning.
        name: of the data set, for the records; null takes it from the source.
        domain: task domain of the records.
        domain_field: column with the domain of each row, instead of ``domain``.
        messages_field: column with the conversation; null looks for a usual name.
        question_field: column with the question, where there is no conversation; null looks for a usual name.
        answer_field: column with the answer; null looks for a usual name.
        media_field: column with pictures or clips; null looks for a usual name.
        id_field: column with the id of the row.
        placeholder: what stands for one medium in the text; null is <image> and <video>.
        media: folders or zips of the media, where the rows hold paths; null is the folder of the file.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field, or the columns if none of the usual names is there.
    """
    names = _names(source)
    columns = Columns(
        conversation=_find(messages_field, CONVERSATIONS if question_field is None else (), names, source),
        question=_find(question_field, QUESTIONS, names, source),
        answer=_find(answer_field, ANSWERS, names, source),
        media=_find(media_field, MEDIA, names, source),
        id=id_field,
        domain=domain_field,
    )
    if not columns.conversation and not columns.question:
        raise InputError(
            f"{source}: none of its columns ({', '.join(names)}) has a usual name for a conversation or a "
            "question; name it with --messages_field or --question_field"
        )
    known = {column for column in (*columns, id_field) if column}
    data = DATA._replace(
        name=name or name_of(source),
        required=(columns.conversation or columns.question or "",),
        optional=tuple(sorted(known)),
    )
    marks = PLACEHOLDER if placeholder is None else re.escape(placeholder)
    with MediaStore(media) as store:
        return convert_rows(
            data,
            partial(_drafts, store, columns, kind, domain, marks),
            source,
            out,
            kind=Kind(kind),
            settings={"kind": kind, "domain": domain, "columns": columns._asdict()},
            limit=limit,
            on_bad_row=on_bad_row,
        )


def _names(source: str) -> list[str]:
    first = next(read_rows(next(find_files(source)), ()), None)
    if first is None:
        raise InputError(f"{source}: its first file has no rows")
    return list(first.fields)


def _find(given: str | None, usual: tuple[str, ...], names: list[str], source: str) -> str | None:
    if given is not None:
        if given not in names:
            raise InputError(f"{source}: has no column {given!r}; it has {', '.join(names)}")
        return given
    return next((name for name in usual if name in names), None)


def _drafts(
    store: MediaStore, columns: Columns, kind: KindName, domain: str, placeholder: str, row: Row
) -> Iterator[Draft]:
    turns = _turns(columns, row)
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    last = answers[-1] if answers else None
    if kind == "instruction" and last is None:
        raise Dropped("there is no answer")
    answer = turns[last].text if kind == "prompt" and last is not None else None
    turns = turns[: None if last is None else last + (kind == "instruction")]
    media = store.load(row.get(columns.media), row, columns.media) if columns.media else []
    yield Draft(
        id=row.id(columns.id),
        domain=str(row.require(columns.domain)) if columns.domain else domain,
        messages=place_media(turns, media, row, placeholder=placeholder),
        answer=answer,
    )


def _turns(columns: Columns, row: Row) -> list[Turn]:
    if columns.conversation:
        return read_turns(row.require(columns.conversation), row, columns.conversation)
    turns = [user(row.text(columns.question or ""))]
    if columns.answer and row.get(columns.answer) is not None:
        turns.append(assistant(str(row.get(columns.answer))))
    return turns
