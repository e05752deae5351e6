# SPDX-License-Identifier: Apache-2.0
"""LLaVA-Critic: GPT-4o's judgments of responses about pictures.

Schema of the card of 2024-10, with the configurations ``pairwise`` and ``pointwise``: ``image``, and a
``conversations`` of two messages. The first embeds question and responses in one of three ways:

    Question: [ … ] and two responses in brackets, each after Response 1, Response A or The first response;
    <|User Prompt|> … <|The Start of Assistant A's Answer|> … as in arenas;
    [Question] … [Assistant 1] … [End of Assistant 1] … as in LLaVA-Bench.

The second holds the verdict: ``The better response: [1]``, ``[[A>B]]``, or two scores on the first line.
Responses hold brackets themselves, so the last bracket of the text closes the second response, and the
last verdict counts.

Dropped are ties, texts without a verdict, and judgments of one response alone (most of ``pointwise``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_turns
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, place_media, text_pair, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="llava_critic",
    home="lmms-lab/LLaVA-Critic-113k",
    licence="Apache-2.0 by its tag; the judgments are by GPT-4o",
    required=("conversations", "image"),
    optional=("id", "source"),
)
BRACKETS = re.compile(
    r"Question:\s*\[(?P<question>.*?)\]\s*\n\s*"
    r"(?:Response 1|Response A|The first response):\s*\[(?P<first>.*?)\]\s*\n\s*"
    r"(?:Response 2|Response B|The second response):\s*\[(?P<second>.*)\]",
    re.DOTALL,
)
ARENA = re.compile(
    r"<\|User Prompt\|>(?P<question>.*?)"
    r"<\|The Start of Assistant A's Answer\|>(?P<first>.*?)<\|The End of Assistant A's Answer\|>\s*"
    r"<\|The Start of Assistant B's Answer\|>(?P<second>.*)<\|The End of Assistant B's Answer\|>",
    re.DOTALL,
)
LLAVA_BENCH = re.compile(
    r"\[Question\](?P<question>.*?)"
    r"\[Assistant 1\](?P<first>.*?)\[End of Assistant 1\]\s*"
    r"\[Assistant 2\](?P<second>.*)\[End of Assistant 2\]",
    re.DOTALL,
)
BETTER = re.compile(r"The better response:\s*\[?(first|second|1|2|A|B)\b", re.IGNORECASE)
EQUAL = re.compile(r"equally good", re.IGNORECASE)
ARENA_VERDICT = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")
TWO_SCORES = re.compile(r"\s*(\d+(?:\.\d+)?)[ ,]+(\d+(?:\.\d+)?)\s*(?:\n|$)")
FIRST = ("first", "1", "a")


class Comparison(NamedTuple):
    """Two responses to a question, and how the first compares: 1 better, 0 equal, −1 worse."""

    question: str
    first: str
    second: str
    order: int


def convert(
    source: str,
    out: str,
    *,
    media: str | list[str] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from LLaVA-Critic.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id.
        out: folder to write; it must not exist, or be empty.
        media: folders or zips of the pictures, where the rows hold paths; null is the folder of the file.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    with MediaStore(media) as store:
        return convert_rows(DATA, partial(_drafts, store), source, out, limit=limit, on_bad_row=on_bad_row)


def _drafts(store: MediaStore, row: Row) -> Iterator[Draft]:
    turns = read_turns(row.require("conversations"), row, "conversations")
    if [turn.role for turn in turns] != ["user", "assistant"]:
        raise row.error("conversations", "must be one message of the human and one of the model")
    comparison = compare(turns[0].text, turns[1].text)
    if comparison.order == 0:
        raise Dropped("the responses are judged equal")
    texts = [comparison.first, comparison.second]
    if comparison.order < 0:
        texts.reverse()
    media = store.load(row.require("image"), row, "image")
    messages = place_media([user(comparison.question)], media, row)
    yield text_pair(row.id(), "general", messages, *texts)


def compare(task: str, judgment: str) -> Comparison:
    """Return the comparison that a task asks for, with the order that the judgment gives.

    Args:
        task: the text of the human.
        judgment: the text of the judge.

    Raises:
        Dropped: if the task has not two responses, or the judgment no verdict.
    """
    for pattern, read in ((BRACKETS, _better), (ARENA, _arena), (LLAVA_BENCH, _scores)):
        if match := pattern.search(task):
            order = read(judgment)
            if order is None:
                raise Dropped("the judgment has no verdict")
            question, first, second = (match[name].strip() for name in ("question", "first", "second"))
            return Comparison(question, first, second, order)
    raise Dropped("the task judges one response, or is in another form")


def _better(judgment: str) -> int | None:
    if found := BETTER.findall(judgment):
        return 1 if found[-1].lower() in FIRST else -1
    return 0 if EQUAL.search(judgment) else None


def _arena(judgment: str) -> int | None:
    found = ARENA_VERDICT.findall(judgment)
    return {"A>": 1, "A=": 0, "B>": -1}[found[-1][:2]] if found else None


def _scores(judgment: str) -> int | None:
    if not (match := TWO_SCORES.match(judgment)):
        return None
    first, second = float(match[1]), float(match[2])
    return (first > second) - (first < second)
