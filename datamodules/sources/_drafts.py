# SPDX-License-Identifier: Apache-2.0
"""What a converter makes of a row: a draft, whose media have no names yet, and its rendering as a record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, groupby, zip_longest
from typing import Any, NamedTuple

from ixc_lightning.datamodules.sources._media import Medium
from ixc_lightning.datamodules.sources._reading import Row

PLACEHOLDER = "<image>|<video>"
"""Pattern of what most sets write where a medium stands."""


class Dropped(Exception):
    """A row, or a pair of it, that the mapping of its data set leaves out. Its text is the reason."""


class Turn(NamedTuple):
    """One message: who speaks, and texts and media in order."""

    role: str
    parts: tuple[str | Medium, ...]

    @property
    def text(self) -> str:
        """All texts of the message."""
        return "".join(part for part in self.parts if isinstance(part, str))


class Draft(NamedTuple):
    """A record before its media have names.

    Attributes:
        id: of the row, or of the pair within it.
        domain: task domain.
        messages: the prompt; of an instruction also the response.
        chosen: the preferred response, or None.
        rejected: the other response, or None.
        answer: reference answer for verifiers; left out where None.
        subset: folder below the output, for sets that are kept apart.
    """

    id: str
    domain: str
    messages: Sequence[Turn]
    chosen: Sequence[Turn] | None = None
    rejected: Sequence[Turn] | None = None
    answer: Any = None
    subset: str = ""


def text_pair(
    id: str, domain: str, messages: Sequence[Turn], chosen: str, rejected: str, *, subset: str = ""
) -> Draft:
    """Return the draft of a pair whose responses are one text each; arguments as the fields of ``Draft``."""
    return Draft(id, domain, messages, [assistant(chosen)], [assistant(rejected)], subset=subset)


def user(*parts: str | Medium) -> Turn:
    """Return a message of the user."""
    return Turn("user", parts)


def assistant(text: str) -> Turn:
    """Return a message of the assistant."""
    return Turn("assistant", (text,))


def place_media(
    turns: Sequence[Turn], media: Sequence[Medium], row: Row, *, placeholder: str = PLACEHOLDER
) -> list[Turn]:
    """Return the messages with the media where placeholders stand, or before all text if none stands there.

    Line breaks between media and the first or last words of a message go: chat templates put their own.

    Args:
        turns: messages of text.
        media: the media, in the order of their placeholders.
        row: for messages.
        placeholder: pattern of what stands for one medium in a message of the user.

    Raises:
        InputError: naming the row, if the numbers of placeholders and media differ.
    """
    found = sum(len(re.findall(placeholder, turn.text)) for turn in turns if turn.role == "user")
    if found not in (0, len(media)):
        raise row.error("media", f"the row gives {len(media)}, but its text has places for {found}")
    rest, placed = list(media), []
    for turn in turns:
        if turn.role == "user":
            texts = re.split(placeholder, turn.text)
            count = len(texts) - 1 if found else len(rest)
            here, rest = rest[:count], rest[count:]
            turn = Turn(turn.role, _interleave(texts if found else [*[""] * count, turn.text], here))
        placed.append(turn)
    return placed


def _interleave(texts: list[str], media: list[Medium]) -> tuple[str | Medium, ...]:
    joined = chain.from_iterable(zip_longest(texts, media, fillvalue=""))
    parts = [part for part in joined if isinstance(part, Medium) or part.strip()]
    words = [place for place, part in enumerate(parts) if isinstance(part, str)]
    for place in words:
        text = str(parts[place])
        if place == words[0] > 0:
            text = text.lstrip("\n")
        if place == words[-1] < len(parts) - 1:
            text = text.rstrip("\n")
        parts[place] = text
    return tuple(parts)


def refusal(draft: Draft) -> str | None:
    """Return why no record can be made of a draft, or None: what occurs in most public sets."""
    for turn in draft.messages:
        if not any(isinstance(part, Medium) or part.strip() for part in turn.parts):
            return "a message of the prompt is empty"
    pair = [draft.chosen or (), draft.rejected or ()]
    texts = [[turn.text.strip() for turn in turns] for turns in pair]
    if any("" in response for response in texts):
        return "a response is empty"
    if draft.chosen is not None and texts[0] == texts[1]:
        return "the responses are equal"
    return None


def render(draft: Draft, source: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the JSON of the record, and its media by file name, numbered in order.

    Messages are always lists of parts and responses always lists of messages, so that the JSON of a folder
    has one shape; Hugging Face ``datasets`` takes the shape from the first samples.
    """
    media: dict[str, bytes] = {}
    messages = [_render_turn(turn, media) for turn in draft.messages]
    record = {"id": draft.id, "source": source, "domain": draft.domain, "messages": messages}
    for name, response in (("chosen", draft.chosen), ("rejected", draft.rejected)):
        if response is not None:
            record[name] = [_render_turn(turn, media) for turn in response]
    return record if draft.answer is None else record | {"answer": draft.answer}, media


def _render_turn(turn: Turn, media: dict[str, bytes]) -> dict[str, Any]:
    content = []
    for part in turn.parts:
        if isinstance(part, Medium):
            name = f"{len(media):02d}.{part.extension}"
            media[name] = part.data
            content.append({"type": part.kind, "file": name})
        else:
            content.append({"type": "text", "text": part})
    return {"role": turn.role, "content": content}


def layout(draft: Draft) -> str:
    """Return the name of the folder for drafts whose members have the same names.

    ``text``, ``image-jpg``, ``images-jpg2-png1``, ``video-mp4``: Hugging Face ``datasets`` fixes the columns
    by the first five samples, and later drops what they lack.
    """
    media = [part for turn in draft.messages for part in turn.parts if isinstance(part, Medium)]
    if not media:
        return "text"
    kind = "video" if any(part.kind == "video" for part in media) else "image" + "s" * (len(media) > 1)
    runs: Iterable[tuple[str, int]] = (
        (extension, len(list(run))) for extension, run in groupby(part.extension for part in media)
    )
    names = [extension if len(media) == 1 else f"{extension}{count}" for extension, count in runs]
    return "-".join([kind, *names])
