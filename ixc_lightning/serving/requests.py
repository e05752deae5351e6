# SPDX-License-Identifier: Apache-2.0
"""Requests as prompts with responses, checked as the lines of a file are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ixc_lightning.datamodules.conversations import Candidates, given_candidates, split_conversation
from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.serving.schemas import ScoreRequest, Turn
from ixc_lightning.types import InputError


class SizeRules:
    """How much text one request may hold.

    Args:
        max_responses: most responses, or conversations.
        max_characters: most characters of a prompt and one response. They are counted before the tokenizer
            counts tokens, which would keep others waiting for a very long text.
    """

    def __init__(self, *, max_responses: int, max_characters: int) -> None:
        self.max_responses = max_responses
        self.max_characters = max_characters

    def check_count(self, count: int, field: str) -> None:
        """Raise ``InputError`` if there are too many responses."""
        if count > self.max_responses:
            raise InputError(f"{field}: {count:,} are more than {self.max_responses}; send fewer at once")

    def check_texts(self, prompt: int, responses: Sequence[str], field: str) -> None:
        """Raise ``InputError`` if a prompt of that many characters with one of the responses is too long."""
        longest = prompt + max(map(len, responses), default=0)
        if longest > self.max_characters:
            raise InputError(
                f"{field}: {longest:,} characters are more than {self.max_characters:,}, more than "
                "the tokens that are allowed make up; send shorter ones"
            )


def conversations(request: ScoreRequest, media: RequestMedia, rules: SizeRules) -> list[Candidates]:
    """Each conversation as a prompt with its one response.

    Raises:
        InputError: naming the conversation and its field, if one cannot be scored.
    """
    count = len(request.conversations)
    rules.check_count(count, "conversations")
    found = []
    for row, turns in enumerate(request.conversations):
        key = str(row)
        prompt, text = split_conversation(_dumped(turns), shard="conversations", key=key)
        rules.check_texts(_characters(turns), [], f"conversations[{row}]")
        found.append(
            given_candidates(
                media.turns(prompt, f"conversations[{row}]"),
                [text],
                images=_files(request.images, "images", row, count, media),
                videos=_files(request.videos, "videos", row, count, media),
                shard="conversations",
                key=key,
            )
        )
    return found


def prompt(
    conversation: str | list[Turn],
    responses: Sequence[str],
    images: Sequence[str],
    videos: Sequence[str],
    media: RequestMedia,
    rules: SizeRules,
) -> Candidates:
    """One prompt with all its responses.

    Raises:
        InputError: naming the field, if it cannot be scored.
    """
    rules.check_count(len(responses), "responses")
    given: str | list[dict[str, Any]]
    if isinstance(conversation, str):
        rules.check_texts(len(conversation), responses, "conversation")
        given = conversation
    else:
        rules.check_texts(_characters(conversation), responses, "conversation")
        given = media.turns(_dumped(conversation), "conversation")
    return given_candidates(
        given,
        list(responses),
        images=media.files(images, "image", "images"),
        videos=media.files(videos, "video", "videos"),
        shard="conversation",
        key="0",
    )


def _dumped(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [turn.model_dump(exclude_none=True) for turn in turns]


def _characters(turns: Sequence[Turn]) -> int:
    return sum(
        len(turn.content)
        if isinstance(turn.content, str)
        else sum(len(part.text) for part in turn.content if part.type == "text")
        for turn in turns
    )


def _files(
    lists: list[list[str]] | None, name: str, row: int, count: int, media: RequestMedia
) -> list[bytes]:
    if lists is None:
        return []
    if len(lists) != count:
        raise InputError(
            f"{name}: there are {count} conversations but {name} for {len(lists)}; give a list for each, "
            "empty where it has none"
        )
    return media.files(lists[row], name.removesuffix("s"), f"{name}[{row}]")
