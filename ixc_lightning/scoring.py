# SPDX-License-Identifier: Apache-2.0
"""Scores from Python: a reward model together with its processor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ixc_lightning.datamodules.candidates import EncodedCandidates, candidate_batch, encode_candidates
from ixc_lightning.datamodules.conversations import (
    Candidates,
    Messages,
    given_candidates,
    split_conversation,
)
from ixc_lightning.datamodules.given_media import Picture, Video
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.scoring import check_suffix, score_responses
from ixc_lightning.types import InputError, Prompts, Responses

Conversation = Sequence[Mapping[str, Any]]


class Comparison(NamedTuple):
    """Two responses to one prompt.

    Attributes:
        a: score of the first response.
        b: score of the second response.
    """

    a: float
    b: float

    @property
    def preferred(self) -> Literal["a", "b"] | None:
        """The response with the higher score; None if both are equal."""
        return None if self.a == self.b else "a" if self.a > self.b else "b"

    @property
    def probability(self) -> float:
        """Of the first response being preferred, by the Bradley-Terry model: σ(a − b)."""
        return torch.tensor(self.a - self.b, dtype=torch.float64).sigmoid().item()


class Scorer:
    """Scores responses to prompts of text, pictures and clips.

    A conversation is a list of turns with ``role`` and ``content``. Content is a text or a list of parts,
    ``{"type": "text", "text": …}``, ``{"type": "image"}`` and ``{"type": "video"}``; the latter stand for
    the next of the given pictures or clips, or hold their own under ``image``, ``video``, ``path`` or
    ``url``. Pictures without a part come before the first user's text.

    A picture is a PIL image, an array (H, W, 3) of uint8, the bytes of a file, a path, or a URL; a clip is an
    array (F, H, W, 3), a list of PIL images, bytes, a path, or a URL.

    A score does not depend on what else is scored with it. Prompts that are equal, pictures included, are
    encoded once.

    Args:
        model: the reward model; it is put into evaluation mode.
        encoder: the chat encoder over the same model's processor.
        batch_size: most responses of one forward pass.
        allow_urls: whether media may be fetched from http(s) URLs. Leave it off where others name them.

    Raises:
        InputError: the model reads a reward token that no response would end with.
    """

    def __init__(
        self, model: RewardModel, encoder: ChatEncoder, *, batch_size: int = 16, allow_urls: bool = False
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, but must be at least 1")
        check_suffix(model, encoder.tokenizer(encoder.response_suffix, add_special_tokens=False)["input_ids"])
        self.model = model.eval()
        self.encoder = encoder
        self.batch_size = batch_size
        self.allow_urls = allow_urls

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: str = "float32",
        attention: str = "sdpa",
        device: str | torch.device | None = None,
        max_tokens: int | None = None,
        video_frames: int = 8,
        response_suffix: str = "",
        batch_size: int = 16,
        allow_urls: bool = False,
    ) -> Scorer:
        """A trained reward model and its processor, from the one folder that holds both.

        Args:
            folder: what training exported, or a hub id.
            dtype: of the backbone's weights; the head is always float32.
            attention: attention implementation, by its name in transformers.
            device: where to compute; null is the GPU, if there is one.
            max_tokens: most tokens of a prompt and one response; what is longer is an error, never cut.
            video_frames: frames taken from each clip; give what the model was trained with.
            response_suffix: text put after every response, such as a reward token; give what the model was
                trained with.
            batch_size: most responses of one forward pass.
            allow_urls: whether media may be fetched from http(s) URLs.

        Raises:
            InputError: the folder holds no reward model or no processor.
        """
        model = RewardModel.from_pretrained(folder, dtype=dtype, attention=attention)
        encoder = ChatEncoder(
            str(folder), max_tokens=max_tokens, video_frames=video_frames, response_suffix=response_suffix
        )
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(place), encoder, batch_size=batch_size, allow_urls=allow_urls)

    def score(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Picture]] | None = None,
        videos: Sequence[Sequence[Video]] | None = None,
    ) -> list[float]:
        """The score of each conversation's last turn, as the score head gives it; higher is better.

        Scores are unbounded, and only those of the same model compare.

        Args:
            conversations: each ends with the assistant's turn.
            images: the pictures of each conversation.
            videos: the clips of each conversation.

        Raises:
            InputError: naming the conversation and its field, if one cannot be scored.
        """
        given = _each(images, "images", conversations), _each(videos, "videos", conversations)
        candidates = []
        for row, (conversation, *media) in enumerate(zip(conversations, *given, strict=True)):
            turns, text = split_conversation(conversation, shard="conversations", key=str(row))
            candidates.append(self._candidates(turns, [text], *media, shard="conversations", key=str(row)))
        merged, places = merge_equal_prompts(candidates)
        values = [value for own in self.score_candidates(merged) for value in own]
        return [values[place] for place in places]

    def score_normalised(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Picture]] | None = None,
        videos: Sequence[Sequence[Video]] | None = None,
    ) -> list[float]:
        """Scores with mean 0 and standard deviation 1 on the data that the model was last validated on.

        The statistics are those that training stored with the model; else as ``score``.
        """
        return self.normalise(self.score(conversations, images, videos))

    def normalise(self, scores: Sequence[float]) -> list[float]:
        """Scores of this model on the scale of ``score_normalised``."""
        return self.model.normalise(torch.tensor(scores, device=self.model.score_mean.device)).tolist()

    def compare(
        self,
        conversation: Conversation | str,
        a: str,
        b: str,
        images: Sequence[Picture] = (),
        videos: Sequence[Video] = (),
    ) -> Comparison:
        """The scores of two responses to one prompt, which of them is preferred, and how surely.

        Args:
            conversation: the turns up to the responses, or the user's only text.
            a: the first response.
            b: the second response.
            images: the prompt's pictures.
            videos: the prompt's clips.

        Raises:
            InputError: naming the field, if the conversation cannot be scored.
        """
        return Comparison(*self.score_responses(conversation, [a, b], images, videos))

    def rank(
        self,
        conversation: Conversation | str,
        responses: Sequence[str],
        images: Sequence[Picture] = (),
        videos: Sequence[Video] = (),
    ) -> list[int]:
        """The rank of each response, in the order in which they are given: 1 is the best.

        Equal scores share the better rank, so that 1, 1, 3 follow each other. Arguments as in
        ``score_responses``.
        """
        return ranks(self.score_responses(conversation, responses, images, videos))

    def score_responses(
        self,
        conversation: Conversation | str,
        responses: Sequence[str],
        images: Sequence[Picture] = (),
        videos: Sequence[Video] = (),
    ) -> list[float]:
        """The scores of several responses to one prompt, whose pictures are encoded once, as ``score``.

        Args:
            conversation: the turns up to the responses, or the user's only text.
            responses: texts.
            images: the prompt's pictures.
            videos: the prompt's clips.

        Raises:
            InputError: naming the field, if the conversation cannot be scored.
        """
        one = self._candidates(conversation, responses, images, videos, shard="conversation", key="0")
        return self.score_candidates([one])[0]

    def score_candidates(self, candidates: Sequence[Candidates]) -> list[list[float]]:
        """The scores of the responses to each prompt; equal responses to it are scored once.

        Raises:
            InputError: a prompt cannot be encoded, or a score is no number.
        """
        once = [unique_answers(one.answers) for one in candidates]
        wanted = [one._replace(answers=answers) for one, (answers, _) in zip(candidates, once, strict=True)]
        scores = [own for start, part in self._parts(wanted) for own in self._score_part(start, part)]
        return [[values[n] for n in places] for values, (_, places) in zip(scores, once, strict=True)]

    def _score_part(self, start: int, part: Sequence[Candidates]) -> list[list[float]]:
        return self.score_encoded(
            [encode_candidates(self.encoder, one, row=start + n) for n, one in enumerate(part)],
            size=self.batch_size,
        )

    @torch.inference_mode()
    def score_encoded(self, samples: Sequence[EncodedCandidates], *, size: int) -> list[list[float]]:
        """The scores of the responses to each prompt, all of them encoded already, and padded to one length.

        Args:
            samples: prompts with their responses.
            size: most responses of one forward pass.

        Raises:
            InputError: a score is no number.
        """
        device = self.model.score.weight.device
        batch = candidate_batch(samples)
        values = score_responses(
            self.model,
            _prompts_to(batch.prompts, device),
            Responses(batch.responses.ids.to(device), batch.responses.mask.to(device)),
            batch.prompt_index.to(device),
            size=size,
        )
        scores = [own.tolist() for own in values.split([len(one.encoded.responses) for one in samples])]
        for one, own in zip(samples, scores, strict=True):
            if not all(map(isfinite, own)):
                record = one.candidates.record
                raise InputError(
                    f"{record.shard}:{record.key}: the model gives {own}, which are no scores; "
                    "load it with dtype float32 or bfloat16, or look at its weights"
                )
        return scores

    def _candidates(
        self, turns: Any, responses: Any, images: Any, videos: Any, *, shard: str, key: str
    ) -> Candidates:
        return given_candidates(
            turns,
            responses,
            images=images,
            videos=videos,
            shard=shard,
            key=key,
            allow_urls=self.allow_urls,
        )

    def _parts(self, candidates: Sequence[Candidates]) -> Iterator[tuple[int, list[Candidates]]]:
        """The prompts in parts of at most ``batch_size`` responses, or of one, with the first's number."""
        part: list[Candidates] = []
        start = count = 0
        for number, one in enumerate(candidates):
            if part and count + len(one.answers) > self.batch_size:
                yield start, part
                part, start, count = [], number, 0
            part.append(one)
            count += len(one.answers)
        if part:
            yield start, part


def ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each score: 1 is the highest, and equal scores share the better rank."""
    return [1 + sum(other > score for other in scores) for score in scores]


def merge_equal_prompts(candidates: Sequence[Candidates]) -> tuple[list[Candidates], list[int]]:
    """One entry for all that share prompt and media, with the responses of all, so that it is encoded once.

    Args:
        candidates: each with one response.

    Returns:
        The entries, and the place of each given response when theirs are counted through.
    """
    groups: dict[bytes, list[int]] = {}
    for row, one in enumerate(candidates):
        groups.setdefault(_mark(one), []).append(row)
    merged = [
        candidates[rows[0]]._replace(answers=[candidates[row].answers[0] for row in rows])
        for rows in groups.values()
    ]
    place_of = {row: place for place, row in enumerate(row for rows in groups.values() for row in rows)}
    return merged, [place_of[row] for row in range(len(candidates))]


def unique_answers(answers: Sequence[Messages]) -> tuple[list[Messages], list[int]]:
    """The answers without repetitions, and the place of each one among these."""
    places: dict[str, int] = {}
    marks = [json.dumps([dict(turn) for turn in answer]) for answer in answers]
    found = [places.setdefault(mark, len(places)) for mark in marks]
    return [answers[found.index(n)] for n in range(len(places))], found


def _mark(candidates: Candidates) -> bytes:
    """What is the same for equal prompts with equal media."""
    digest = blake2b(json.dumps([dict(turn) for turn in candidates.prompt]).encode())
    for name, data in sorted(candidates.record.media.items()):
        digest.update(name.encode() + blake2b(data).digest())
    return digest.digest()


def _each(media: Any, name: str, conversations: Any) -> Sequence[Any]:
    """The media of each conversation, which are none if nothing is given."""
    if isinstance(conversations, Mapping | str) or any(isinstance(one, Mapping) for one in conversations):
        raise InputError("conversations: must be a list of conversations; put an only one into a list too")
    if media is None:
        return [()] * len(conversations)
    if len(media) != len(conversations):
        raise InputError(
            f"{name}: there are {len(conversations)} conversations but {name} for {len(media)}; give a list "
            "for each, empty where it has none"
        )
    return media


def _prompts_to(prompts: Prompts, device: torch.device) -> Prompts:
    return Prompts(
        prompts.ids.to(device),
        prompts.mask.to(device),
        {name: types.to(device) for name, types in prompts.token_types.items()},
        {name: tensor.to(device) for name, tensor in prompts.media.items()},
        None if prompts.shows is None else prompts.shows.to(device),
    )
