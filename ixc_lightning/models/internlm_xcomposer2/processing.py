# SPDX-License-Identifier: Apache-2.0
"""The processor: chat template, placeholders, and every picture of a prompt in order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ixc_lightning.models.internlm_xcomposer2.image_processing import InternLMXComposer2ImageProcessor
from ixc_lightning.models.internlm_xcomposer2.tokenization import CLOSE_TURN, OPEN_TURN
from ixc_lightning.models.internlm_xcomposer2.video_processing import InternLMXComposer2VideoProcessor
from ixc_lightning.models.internlm_xcomposer2.vision import MERGE, PATCH, num_image_tokens
from ixc_lightning.types import InputError

IMAGE, VIDEO = "<ImageHere>", "<VideoHere>"
"""Where a prompt's pictures and videos go. The release writes the first for both."""

CHAT_TEMPLATE = (
    "{%- set media = namespace(total=0, seen=0, only='') -%}"
    "{%- for message in messages -%}{%- if message['content'] is not string -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] in ('image', 'video') -%}"
    "{%- set media.total = media.total + 1 -%}"
    f"{{%- set media.only = '{IMAGE}' if part['type'] == 'image' else '{VIDEO}' -%}}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if media.total == 1 -%}{{ media.only }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('roles are system, user and assistant, not ' ~ message['role']) }}{%- endif -%}"
    f"{{{{ '{OPEN_TURN}' + message['role'] + '\\n' }}}}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- elif media.total > 1 -%}{%- set media.seen = media.seen + 1 -%}"
    f"{{{{ 'Image' ~ media.seen ~ ' ' ~ ('{IMAGE}' if part['type'] == 'image' else '{VIDEO}') ~ '; ' }}}}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    f"{{{{ '{CLOSE_TURN}\\n' }}}}{{%- endfor -%}}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{OPEN_TURN}assistant\\n' }}}}{{%- endif -%}}"
)
"""Turns as the release writes them: an only picture first of all, several as ``Image1 <ImageHere>; …``."""

_PLACEHOLDER = re.compile(f"{re.escape(IMAGE)}|{re.escape(VIDEO)}")


class InternLMXComposer2Processor(ProcessorMixin):
    """Texts with placeholders, pictures and videos to the model's inputs.

    Images and videos come out under the same names, in the order of their placeholders, because the model
    sees a video as one picture. As in the release, an only picture whose prompt has no placeholder goes
    before the text, and several pictures in one prompt get fewer tiles each.

    Args:
        image_processor: cuts images into tiles.
        tokenizer: the text's tokenizer.
        video_processor: composes videos.
        chat_template: in place of the released one.
    """

    def __init__(
        self,
        image_processor: InternLMXComposer2ImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        video_processor: InternLMXComposer2VideoProcessor,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(
            image_processor, tokenizer, video_processor, chat_template=chat_template or CHAT_TEMPLATE
        )
        self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.image_token_id

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode one prompt or several.

        Args:
            images: pictures, flat in the order of the placeholders, or one list for each text.
            text: a prompt or a list of prompts.
            videos: arrays of frames (frames, height, width, 3) or paths, flat or one list for each text.
            **kwargs: for the tokenizer; ``images_kwargs`` and ``videos_kwargs`` for the other parts.

        Returns:
            ``input_ids`` and ``attention_mask``, and with pictures ``pixel_values`` and ``image_grid_hw``.

        Raises:
            InputError: pictures and placeholders do not match, a text holds tokens that the model has no
                embedding for, or truncation would cut a picture.
        """
        if text is None:
            raise InputError("the processor needs text; for tiles alone call its image_processor")
        texts = [text] if isinstance(text, str) else list(text)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        kinds = _place_alone(texts, images, videos)
        pixels, grids = self._encode_media(kinds, images, videos, options)
        texts, counts = self._expand(texts, grids)
        outputs = self.tokenizer(texts, **options["text_kwargs"])
        self._check_ids(outputs["input_ids"], counts)
        if grids:
            outputs = {**outputs, "pixel_values": torch.cat(pixels), "image_grid_hw": torch.tensor(grids)}
        return BatchFeature(dict(outputs), tensor_type=options["text_kwargs"].get("return_tensors"))

    def num_image_tokens(self, rows: int, columns: int) -> int:
        """Tokens of a picture of rows × columns tiles."""
        side = self.image_processor.tile_size // (PATCH * MERGE)
        return num_image_tokens(rows, columns, side=side)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of the outputs."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def _encode_media(
        self, kinds: list[list[str]], images: Any, videos: Any, options: dict[str, Any]
    ) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """Tiles and grids of all pictures in the order of the placeholders."""
        clips = iter(self._encode_videos(videos, options["videos_kwargs"]))
        pictures = _flat(images)
        chosen = {
            name: value
            for name, value in options["images_kwargs"].items()
            if name in ("hd_num", "hd_num_multiple", "variant")
        }
        several = chosen.get("hd_num_multiple", self.image_processor.hd_num_multiple)
        pixels: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        for sample in kinds:
            most = {"hd_num": several} if len(sample) > 1 else {}
            for kind in sample:
                if kind == VIDEO:
                    tiles, grid = next(clips)
                else:
                    outputs = self.image_processor.preprocess(pictures.pop(0), **{**chosen, **most})
                    tiles, grid = outputs["pixel_values"], outputs["image_grid_hw"][0]
                pixels.append(tiles)
                grids.append((int(grid[0]), int(grid[1])))
        return pixels, grids

    def _encode_videos(self, videos: Any, options: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        if not _flat(videos):
            return
        outputs = self.video_processor(videos, **{**options, "return_tensors": None})
        grids = outputs["video_grid_hw"]
        counts = (grids.prod(-1) + 1).tolist()
        yield from zip(outputs["pixel_values_videos"].split(counts), grids, strict=True)

    def _expand(self, texts: list[str], grids: list[tuple[int, int]]) -> tuple[list[str], list[int]]:
        """The texts with one image token for every token of a picture, and their number in each text."""
        remaining = iter(grids)
        counts: list[int] = []

        def expand(_: re.Match[str]) -> str:
            count = self.num_image_tokens(*next(remaining))
            counts[-1] += count
            return self.image_token * count

        expanded = []
        for text in texts:
            if self.image_token in text:
                raise InputError(
                    f"a text holds {self.image_token}, which stands for parts of pictures: remove it"
                )
            counts.append(0)
            expanded.append(_PLACEHOLDER.sub(expand, text))
        return expanded, counts

    def _check_ids(self, rows: Any, counts: list[int]) -> None:
        vocabulary = self.tokenizer.vocab_size
        for row, count in zip(rows, counts, strict=True):
            ids = row.tolist() if isinstance(row, Tensor) else list(row)
            if beyond := sorted({index for index in ids if index >= vocabulary}):
                tokens = ", ".join(self.tokenizer.convert_ids_to_tokens(beyond))
                raise InputError(f"a text holds {tokens}, for which the model has no embedding: remove it")
            if ids.count(self.image_token_id) != count:
                raise InputError(
                    f"truncation cuts a picture of {count} tokens: raise max_length, or lower hd_num"
                )


def _flat(media: Any) -> list[Any]:
    """Media in one list, whether they came alone, in a list, or in a list for each text."""
    if media is None:
        return []
    if not isinstance(media, (list, tuple)):
        return [media]
    return [one for part in media for one in (part if isinstance(part, (list, tuple)) else [part])]


def _place_alone(texts: list[str], images: Any, videos: Any) -> list[list[str]]:
    """The placeholders of each text in order, after an only picture without one was put before its text.

    Raises:
        InputError: there are more or fewer pictures than placeholders.
    """
    for number, text in enumerate(texts):
        own = {kind: _own(media, number, len(texts)) for kind, media in ((IMAGE, images), (VIDEO, videos))}
        if sum(own.values()) == 1 and not _PLACEHOLDER.search(text):
            texts[number] = (IMAGE if own[IMAGE] else VIDEO) + text
    kinds = [_PLACEHOLDER.findall(text) for text in texts]
    for kind, media, name in ((IMAGE, images, "images"), (VIDEO, videos, "videos")):
        placed = [sample.count(kind) for sample in kinds]
        given = [_own(media, number, len(texts)) for number in range(len(texts))]
        is_nested = len(_flat(media)) == sum(given)
        if (placed != given) if is_nested else sum(placed) != len(_flat(media)):
            raise InputError(
                f"the texts hold {sum(placed)} placeholders {kind}, but there are {len(_flat(media))} {name}"
                + (f" ({placed} and {given} by text)" if is_nested and len(texts) > 1 else "")
            )
    return kinds


def _own(media: Any, number: int, texts: int) -> int:
    """How many media belong to the text of that number; 0 where a flat list does not tell."""
    if texts == 1:
        return len(_flat(media))
    if isinstance(media, (list, tuple)) and len(media) == texts and isinstance(media[number], (list, tuple)):
        return len(media[number])
    return 0
