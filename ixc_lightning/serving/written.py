# SPDX-License-Identifier: Apache-2.0
"""Conversations that a caller's chat template has written out already, as trainers post them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy

from ixc_lightning.datamodules.conversations import Candidates, given_candidates
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import InputError

VERBATIM = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)
"""A chat template that adds nothing to the texts: placeholders of media stand in them already."""


class WrittenChats:
    """Texts of a chat template as prompt and response, so that they score as the conversation itself does.

    The template of the reward model tells what stands before and behind a response. A text is split at
    the last opening of the assistant's turn, padding around it is dropped, a turn that was cut off at the
    limit of generation is closed, and a leading token that trainers strip because their engines add it is
    put back.

    Args:
        encoder: the reward model's chat encoder.

    Attributes:
        encoder: encodes the candidates that ``candidates`` returns, and nothing else.
    """

    def __init__(self, encoder: ChatEncoder) -> None:
        self.encoder = copy(encoder)
        self.encoder.processor = copy(encoder.processor)
        self.encoder.processor.chat_template = VERBATIM
        if encoder.is_text_only:
            self.encoder.tokenizer = self.encoder.processor
        prompt = _render(encoder, ["?"], opens_answer=True)
        self.opening = prompt.removeprefix(_render(encoder, ["?"], opens_answer=False))
        answered = _render(encoder, ["?", "!"], opens_answer=False).rstrip("\n")
        self.closing = answered[len(prompt) :].partition("!")[2]
        bos = encoder.tokenizer.bos_token or ""
        self.start = bos if prompt.startswith(bos) else ""
        self.pad = encoder.tokenizer.pad_token or ""
        self.placeholders = [
            token
            for name in ("image_token", "video_token")
            if isinstance(token := getattr(encoder.processor, name, None), str)
        ]

    def candidates(
        self,
        text: str,
        *,
        prompt: str | None = None,
        images: Sequence[bytes] = (),
        videos: Sequence[bytes] = (),
        where: str,
    ) -> Candidates:
        """One text as a prompt and its response.

        Args:
            text: prompt and response.
            prompt: the beginning of ``text`` that is the prompt, if that is known.
            images: pictures in the order of their placeholders.
            videos: clips, likewise.
            where: what the text is called in messages.

        Raises:
            InputError: it has no response, or its prompt is empty.
        """
        text = self._stripped(text)
        prompt = self._stripped(prompt or "")
        if not (prompt and text.startswith(prompt)):
            before, opening, _ = text.rpartition(self.opening) if self.opening else ("", "", text)
            prompt = before + opening
        if not prompt:
            raise InputError(
                f"{where}: holds no {self.opening!r}, with which the reward model's chat template opens the "
                "response; apply that template, or send prompts that the texts begin with"
            )
        response = text[len(prompt) :].rstrip("\n").removesuffix(self.closing)
        if self.start and not prompt.startswith(self.start):
            prompt = self.start + prompt
        return given_candidates(
            self._single(prompt, len(images) + len(videos)),
            [response + self.closing],
            images=list(images),
            videos=list(videos),
            shard=where,
            key="0",
        )

    def _stripped(self, text: str) -> str:
        if not self.pad or self.pad == self.closing:
            return text
        while text.startswith(self.pad):
            text = text.removeprefix(self.pad)
        while text.endswith(self.pad):
            text = text.removesuffix(self.pad)
        return text

    def _single(self, prompt: str, media: int) -> str:
        """The prompt with one placeholder for each picture, where a trainer decoded those of its tokens."""
        if sum(map(prompt.count, self.placeholders)) > media:
            for token in self.placeholders:
                prompt = re.sub(f"(?:{re.escape(token)})+", token.replace("\\", r"\\"), prompt)
        return prompt


def _render(encoder: ChatEncoder, texts: Sequence[str], *, opens_answer: bool) -> str:
    messages = [
        {
            "role": ("user", "assistant")[n % 2],
            "content": text if encoder.is_text_only else [{"type": "text", "text": text}],
        }
        for n, text in enumerate(texts)
    ]
    written: str = encoder.processor.apply_chat_template(
        messages, add_generation_prompt=opens_answer, tokenize=False
    )
    return written
