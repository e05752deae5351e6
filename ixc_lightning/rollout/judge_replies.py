# SPDX-License-Identifier: Apache-2.0
"""What a chat completion says, and how large a request for one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

LETTERS_PER_TOKEN = 3
"""To guess the tokens of a text."""
PICTURE_TOKENS = 1000
"""To guess the tokens of a request with a picture; corrected by what replies say."""


class Reply(NamedTuple):
    """What a server replied.

    Attributes:
        text: of the message; empty in a refusal.
        refusal: why the server would not answer, or empty.
        finish: why the reply ended; ``length`` where ``max_tokens`` ended it.
        model: that the server says has answered.
        input_tokens: of the request.
        output_tokens: of the reply.
    """

    text: str
    refusal: str
    finish: str
    model: str
    input_tokens: int
    output_tokens: int


def read_reply(completion: Any, *, guess: int) -> Reply:
    """The reply in a chat completion.

    Args:
        completion: as the ``openai`` package gives it, which checks little of it.
        guess: tokens of the request, where the server does not tell them.

    Raises:
        TypeError, AttributeError, IndexError: it is no chat completion.
    """
    choice = completion.choices[0]
    message, usage = choice.message, completion.usage
    text, refusal = message.content or "", getattr(message, "refusal", None) or ""
    if not isinstance(text, str):
        raise TypeError(f"the content is of type {type(text).__name__}")
    if choice.finish_reason == "content_filter":
        refusal = refusal or "the content filter of the server"
    return Reply(
        text="" if refusal else text,
        refusal=refusal,
        finish=str(choice.finish_reason),
        model=str(completion.model),
        input_tokens=(usage and usage.prompt_tokens) or guess,
        output_tokens=(usage and usage.completion_tokens) or len(text) // LETTERS_PER_TOKEN,
    )


def guess_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """About how many tokens messages have."""
    parts = [
        part
        for message in messages
        for part in (
            message["content"]
            if isinstance(message["content"], list)
            else [{"type": "text", "text": message["content"]}]
        )
    ]
    letters = sum(len(part["text"]) for part in parts if part["type"] == "text")
    pictures = sum(part["type"] != "text" for part in parts)
    return letters // LETTERS_PER_TOKEN + pictures * PICTURE_TOKENS
