# SPDX-License-Identifier: Apache-2.0
"""Records to token ids and pixel tensors, by the model's own Hugging Face processor.

A datamodule knows a processor, never a model: this is the one place here that imports transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.video_utils import VideoMetadata

from ixc_lightning.datamodules.media import Clip, decode_image, decode_video
from ixc_lightning.datamodules.pixels import NO_SCALES, Scales, find_scales
from ixc_lightning.processors import load_processor
from ixc_lightning.types import InputError, Record

TOKEN_ALIGNED = ("mm_token_type_ids", "token_type_ids")
"""Processor outputs that the model takes beside the ids, one number per token."""
PER_TOKEN = ("input_ids", "attention_mask", *TOKEN_ALIGNED)
"""Processor outputs that hold one number per token; all others are media."""

AS_BYTES = {"do_rescale": False, "do_normalize": False}
"""Options by which processors leave pixels as they are after resizing."""

Messages = Sequence[Mapping[str, Any]]


class Encoded(NamedTuple):
    """One prompt and its responses.

    Attributes:
        ids: the prompt's token ids (P,), up to and including the opening of the assistant's turn.
        token_types: per-token inputs of the model family, each (P,).
        media: pixel tensors and grids of the prompt's pictures.
        responses: token ids (T,) of each response, its end-of-turn token included.
        scales: how those of ``media`` that are bytes become the processor's floats.
        for_reward: the same prompt by the processor of a reward model, if that one reads other tokens.
    """

    ids: Tensor
    token_types: dict[str, Tensor]
    media: dict[str, Tensor]
    responses: list[Tensor]
    scales: Scales = NO_SCALES
    for_reward: Encoded | None = None


class ChatEncoder:
    """Encodes the prompt and the responses of a record with a processor's chat template.

    A response's tokens are those of the text that the template writes after the prompt, so prompt and
    response can be cached, shared and generated apart, and joined still make the sequence that a chat model
    was trained on.

    Args:
        source: hub id or folder of the processor.
        max_tokens: most tokens of a prompt and one response. A longer sample is an error: cutting would cut
            pictures or answers.
        video_frames: frames taken from each video, evenly spaced.
        response_suffix: text put after every response, for a reward token such as ``[UNUSED_TOKEN_130]``.

    Raises:
        InputError: the processor cannot be loaded or has no chat template.
    """

    def __init__(
        self, source: str, *, max_tokens: int | None = None, video_frames: int = 8, response_suffix: str = ""
    ) -> None:
        self.processor = load_processor(source)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.max_tokens = max_tokens
        self.video_frames = video_frames
        self.response_suffix = response_suffix
        self.scales = NO_SCALES
        self._options: dict[str, dict[str, Any]] = {"images_kwargs": {}, "videos_kwargs": {}}
        if not (self.processor.chat_template or self.tokenizer.chat_template):
            raise InputError(
                f"the processor of {source!r} has no chat template: add chat_template.jinja to the folder"
            )

    def __call__(self, record: Record, messages: Messages, answers: Sequence[Messages]) -> Encoded:
        """Encode ``messages`` as the prompt and each of ``answers`` as a response to it.

        Raises:
            InputError: media cannot be decoded, the sample is too long, or the processor or its template
                cannot take it.
        """
        text = self._text(record, messages, opens_answer=True)
        prompt = self._prompt(record, text)
        responses = self._responses([self._answer(record, text, [*messages, *answer]) for answer in answers])
        longest = len(prompt["input_ids"]) + max((len(ids) for ids in responses), default=0)
        if self.max_tokens is not None and longest > self.max_tokens:
            raise InputError(
                f"{record.shard}:{record.key}: {longest} tokens, more than max_tokens={self.max_tokens}; "
                "raise max_tokens, send smaller or fewer pictures, or leave the sample out"
            )
        return Encoded(
            ids=prompt.pop("input_ids"),
            token_types={name: prompt.pop(name) for name in TOKEN_ALIGNED if name in prompt},
            media={name: value for name, value in prompt.items() if name != "attention_mask"},
            responses=responses,
            scales=self.scales,
        )

    def answers(self, messages: Messages, texts: Sequence[str], *, where: str) -> list[Tensor]:
        """Token ids (T,) of answers to a prompt that was encoded before, as if they had been encoded with it.

        Args:
            messages: the prompt; its media are not needed.
            texts: what the assistant answers, one answer each.
            where: ``shard:key`` of the prompt's record.

        Raises:
            InputError: the template cannot take the conversation.
        """
        shard, _, key = where.rpartition(":")
        record = Record(key, shard, "", "", tuple(messages))
        prompt = self._text(record, messages, opens_answer=True)
        said = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in texts]
        return self._responses([self._answer(record, prompt, [*messages, answer]) for answer in said])

    def in_bytes(self) -> ChatEncoder:
        """This encoder with pixels that are bytes still, or itself if the processor's floats need more.

        What takes its outputs must apply ``scales``, by which ``pixels.to_floats`` makes the floats.
        """
        if self.is_text_only:
            return self
        other = copy(self)
        other._options = {name: dict(AS_BYTES) for name in ("images_kwargs", "videos_kwargs")}
        other.scales = find_scales(self._try_media, other._try_media)
        return other if other.scales else self

    def response_lengths(self, record: Record) -> tuple[int, int]:
        """Tokens of the chosen and of the rejected text alone, without template; needs no media."""
        texts = (text_of(answer) for answer in (record.chosen or (), record.rejected or ()))
        chosen, rejected = (
            len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
        )
        return chosen, rejected

    @property
    def is_text_only(self) -> bool:
        """Whether the source has a tokenizer alone, and so takes no pictures."""
        return isinstance(self.processor, PreTrainedTokenizerBase)

    def _text(self, record: Record, messages: Messages, *, opens_answer: bool) -> str:
        if self.is_text_only:  # text templates expect strings where multi-modal ones expect parts
            messages = [{**message, "content": text_of([message])} for message in messages]
        try:
            text: str = self.processor.apply_chat_template(
                messages, add_generation_prompt=opens_answer, tokenize=False
            )
        except Exception as error:  # a template refuses a conversation with whatever jinja2 or it raises
            raise InputError(
                f"{record.shard}:{record.key}: the chat template cannot take the conversation ({error}); "
                "change the record or leave it out"
            ) from error
        return text

    def _prompt(self, record: Record, text: str) -> dict[str, Tensor]:
        if self.is_text_only and record.modality != "text":
            problem = f"a {record.modality} prompt, but the model reads text only; leave it out"
            raise InputError(f"{record.shard}:{record.key}: {problem}")
        media = {} if self.is_text_only else self._media(*self._decode(record))
        return self._inputs(record, text, media)

    def _inputs(self, record: Record, text: str, media: Mapping[str, Any]) -> dict[str, Tensor]:
        # As ``apply_chat_template`` has it: a tokenizer's template writes every special token itself, that of
        # a processor may leave the first one to the tokenizer.
        bos = self.tokenizer.bos_token
        adds_special = not self.is_text_only and not (bos and text.startswith(bos))
        try:
            outputs = self.processor(
                text=[text], return_tensors="pt", add_special_tokens=adds_special, **media
            )
        except Exception as error:  # processors refuse what they do not expect with almost anything
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{record.shard}:{record.key}: the processor cannot take this {record.modality} prompt "
                f"({reason}); its texts may hold a placeholder of media, or the model may not know its media"
            ) from error
        return {
            name: torch.as_tensor(value)[0] if name in PER_TOKEN else torch.as_tensor(value)
            for name, value in outputs.items()
        }

    def _answer(self, record: Record, prompt: str, dialogue: Messages) -> str:
        """What the template writes after the prompt."""
        text = self._text(record, dialogue, opens_answer=False)
        if not text.startswith(prompt):
            raise InputError(
                f"{record.shard}:{record.key}: the chat template rewrites the prompt once an answer follows, "
                "so the two cannot be encoded apart; give the processor a template without that rule"
            )
        # Templates often end a turn with a line break; generation stops before it, at the end token.
        return text[len(prompt) :].rstrip("\n") + self.response_suffix

    def _responses(self, answers: list[str]) -> list[Tensor]:
        """Tokens of each answer; one call for all of them costs hardly more than for one."""
        if not answers:
            return []
        rows = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        return [torch.tensor(row, dtype=torch.long) for row in rows]

    def _media(self, images: Sequence[Image.Image], clips: Sequence[Clip]) -> dict[str, Any]:
        """Decoded media as keyword arguments of the processor, which must not name what a record lacks."""
        media: dict[str, Any] = {}
        if images:
            media["images"] = [list(images)]
            media["images_kwargs"] = self._options["images_kwargs"]
        if clips:
            media["videos"] = [[clip.frames for clip in clips]]
            # Frames were sampled when the clip was decoded; some families write their times into the prompt.
            media["videos_kwargs"] = {
                **self._options["videos_kwargs"],
                "do_sample_frames": False,
                "video_metadata": [[_metadata(clip) for clip in clips]],
            }
        return media

    def _try_media(self, images: Sequence[Image.Image], clips: Sequence[Clip]) -> dict[str, Tensor]:
        """What becomes of pictures and clips that belong to no record."""
        kinds = ["image"] * len(images) + ["video"] * len(clips)
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": "?"}]
        record = Record("", "", "", "", ({"role": "user", "content": content},))
        text = self._text(record, record.messages, opens_answer=True)
        outputs = self._inputs(record, text, self._media(images, clips))
        return {name: value for name, value in outputs.items() if name not in PER_TOKEN}

    def pictures(self, record: Record) -> list[Image.Image]:
        """The images of a record, then the sampled frames of its clips."""
        images, clips = self._decode(record)
        return images + [Image.fromarray(frame) for clip in clips for frame in clip.frames]

    def _decode(self, record: Record) -> tuple[list[Image.Image], list[Clip]]:
        images, clips = [], []
        for part in record.parts:
            where = f"{record.shard}:{record.key}.{part.get('file')}"
            if part["type"] == "image":
                images.append(decode_image(record.media[part["file"]], where=where))
            elif part["type"] == "video":
                clips.append(decode_video(record.media[part["file"]], frames=self.video_frames, where=where))
        return images, clips


def _metadata(clip: Clip) -> VideoMetadata:
    fps = clip.fps or None
    duration = clip.num_frames / fps if fps else None
    return VideoMetadata(
        total_num_frames=clip.num_frames, fps=fps, duration=duration, frames_indices=clip.indices
    )


def text_of(messages: Messages) -> str:
    """All text of the messages, one part after the other."""
    return "".join(
        part["text"] for message in messages for part in message["content"] if part["type"] == "text"
    )
