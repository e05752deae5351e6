# SPDX-License-Identifier: Apache-2.0
"""Scores, comparisons and rankings by the conventions of the released reward model's own methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from ixc_lightning.models.internlm_xcomposer2.processing import IMAGE, VIDEO, InternLMXComposer2Processor
from ixc_lightning.models.internlm_xcomposer2.tokenization import END, REWARD_TOKEN
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.types import InputError, Prompts, Sequences

Conversation = Sequence[Mapping[str, str]]
"""Turns with ``role`` (system, user or assistant) and ``content``, the answer to be scored last."""
Picture = Image.Image | str | Path

VIDEO_ENDINGS = (".mp4", ".avi", ".mkv", ".mov", ".wmv")
MAX_LENGTH = 16384
HD_NUM = 24
HD_NUM_SEVERAL = 6


class ReleasedScorer:
    """A reward model with the methods of the released one.

    The prompt is all turns, then ``</s>[UNUSED_TOKEN_130]``; the score is that of this last token. The
    defaults are those of the released methods, ``hd_num`` 24 for an only image and 6 for each of several,
    while its evaluation scripts pass 9.

    Where it differs from the release: pictures may be in memory, scores of one conversation come in a list
    too, and a sequence that is too long is an error, where the release cuts the reward token off and scores
    another.

    Args:
        model: with ``pooling: last``, such as the released reward model.
        processor: of the same model.
    """

    def __init__(self, model: RewardModel, processor: InternLMXComposer2Processor) -> None:
        if model.pooling == "mean":
            raise InputError(
                "the model pools over all tokens, but the released methods read the reward token: score it "
                "with the predict command"
            )
        self.model = model
        self.processor = processor

    def score(
        self,
        conversation: Conversation | str,
        images: Sequence[Picture] = (),
        *,
        hd_num: int = HD_NUM,
        max_length: int = MAX_LENGTH,
    ) -> float:
        """The score of one conversation, unbounded; higher is better.

        Args:
            conversation: its turns, or the whole prompt as a string.
            images: its pictures, or paths of pictures and videos, in the order of ``<ImageHere>`` in the
                text; an only one needs no placeholder.
            hd_num: most tiles of an only image.
            max_length: most tokens.

        Raises:
            InputError: the conversation is too long, or its pictures do not match it.
        """
        return self.scores([conversation], [images], hd_num=hd_num, max_length=max_length)[0]

    @torch.no_grad()
    def scores(
        self,
        conversations: Sequence[Conversation | str],
        images: Sequence[Sequence[Picture]],
        *,
        hd_num: int = HD_NUM,
        max_length: int = MAX_LENGTH,
    ) -> list[float]:
        """The scores of several conversations, computed in one batch; see ``score``."""
        if len(conversations) != len(images):
            raise InputError(f"there are {len(conversations)} conversations but images for {len(images)}")
        rows = [
            self._encode(conversation, pictures, hd_num, max_length)
            for conversation, pictures in zip(conversations, images, strict=True)
        ]
        device = self.model.score.weight.device
        length = max(len(row["input_ids"][0]) for row in rows)
        ids = torch.stack([pad(row["input_ids"][0], (0, length - row["input_ids"].shape[1])) for row in rows])
        lengths = torch.tensor([row["input_ids"].shape[1] for row in rows])
        mask = torch.arange(length) < lengths[:, None]
        media = {
            name: torch.cat([row[name] for row in rows if name in row]).to(device)
            for name in ("pixel_values", "image_grid_hw")
            if any(name in row for row in rows)
        }
        ids, mask = (ids * mask).to(device), mask.to(device)
        visuals = self.model.encode(Prompts(ids, mask, {}, media))
        result: list[float] = self.model(Sequences(ids, mask, mask, {}), visuals).tolist()
        return result

    def compare(
        self,
        first: Conversation | str,
        first_images: Sequence[Picture],
        second: Conversation | str,
        second_images: Sequence[Picture],
        *,
        hd_num: int = HD_NUM,
        max_length: int = MAX_LENGTH,
    ) -> bool:
        """Whether the first conversation scores strictly higher than the second."""
        one, other = (
            self.score(conversation, images, hd_num=hd_num, max_length=max_length)
            for conversation, images in ((first, first_images), (second, second_images))
        )
        return one > other

    def rank(
        self,
        conversations: Sequence[Conversation | str],
        images: Sequence[Sequence[Picture]],
        *,
        hd_num: int = HD_NUM,
        max_length: int = MAX_LENGTH,
    ) -> list[int]:
        """Indices of the conversations, the best first; equal scores keep their order."""
        scores = self.scores(conversations, images, hd_num=hd_num, max_length=max_length)
        return sorted(range(len(scores)), key=lambda index: -scores[index])

    def _encode(
        self, conversation: Conversation | str, images: Sequence[Picture], hd_num: int, max_length: int
    ) -> dict[str, Tensor]:
        if isinstance(conversation, str):
            prompt = conversation
        else:
            prompt = (
                self.processor.apply_chat_template(list(conversation), tokenize=False) + END + REWARD_TOKEN
            )
        if not prompt.endswith(REWARD_TOKEN):
            raise InputError(f"a prompt must end with {END}{REWARD_TOKEN}, whose score is read")
        videos = [str(image) for image in images if is_video(image)]
        pictures = [open_picture(image) for image in images if not is_video(image)]
        kinds = iter([VIDEO if is_video(image) else IMAGE for image in images])
        batch = self.processor(
            text=re.sub(IMAGE, lambda _: next(kinds, IMAGE), prompt),
            images=pictures or None,
            videos=videos or None,
            return_tensors="pt",
            images_kwargs={"hd_num": hd_num, "hd_num_multiple": HD_NUM_SEVERAL},
        )
        if (count := batch["input_ids"].shape[1]) > max_length:
            raise InputError(
                f"a conversation of {count} tokens exceeds max_length={max_length}, and a cut would lose "
                f"the reward token: lower hd_num, which is {hd_num}, or shorten the conversation"
            )
        return dict(batch)


def is_video(image: Picture) -> bool:
    """Whether it is the path of a video, told by its ending as in the release."""
    return not isinstance(image, Image.Image) and Path(image).suffix.lower() in VIDEO_ENDINGS


def open_picture(image: Picture) -> Image.Image:
    """The picture of a path, as stored; a picture stays as it is.

    Raises:
        InputError: there is no such file, or it is no picture.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        with Image.open(image) as picture:
            picture.load()
            return picture
    except OSError as error:
        raise InputError(f"{image} cannot be opened as a picture: {error}") from error
