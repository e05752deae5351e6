# SPDX-License-Identifier: Apache-2.0
"""What trainers post to a remote reward model, and the shape in which they expect the answer.

Their texts have been through a chat template: OpenRLHF posts the tokens of prompt and response decoded, verl
what the reward model's own template makes of the conversation. Fields that only matter to rewards by rules,
such as labels, are left aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ixc_lightning.datamodules.conversations import Candidates
from ixc_lightning.scoring import merge_equal_prompts
from ixc_lightning.serving.batcher import Batcher, Score
from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.serving.libraries import APIRouter, BaseModel, ConfigDict, Field
from ixc_lightning.serving.requests import SizeRules
from ixc_lightning.serving.written import WrittenChats
from ixc_lightning.types import InputError

Files = list[str]


class Posted(BaseModel):
    """A request whose other fields are left aside: trainers add some from release to release."""

    model_config = ConfigDict(extra="ignore")


class RewardRequest(Posted):
    """What OpenRLHF posts, extended by pictures and clips."""

    query: list[str] = Field(min_length=1, description="Prompts with their responses, chat template applied.")
    prompts: list[str] | None = Field(None, description="The prompts alone: where each query's prompt ends.")
    images: list[Files | None] | None = Field(None, description="The pictures of each query.")
    videos: list[Files | None] | None = Field(None, description="The clips of each query.")


class RewardAnswer(BaseModel):
    """What OpenRLHF reads: rewards to train on, scores to filter by, and values to log."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class EngineRequest(Posted):
    """What verl posts to an inference engine, extended by pictures and clips."""

    model: str | None = Field(None, description="Is repeated in the answer.")
    input: str | list[str] = Field(description="Conversations with their responses, chat template applied.")
    images: Files | list[Files] | None = Field(
        None, description="The pictures, in a list for each text of a list."
    )
    videos: Files | list[Files] | None = Field(None, description="The clips, likewise.")


class ClassifyAnswer(BaseModel):
    """The score of each text as the only logit, as vLLM answers without an activation."""

    object: str = "list"
    model: str | None
    data: list[dict[str, Any]]


class EmbeddingsAnswer(BaseModel):
    """The score of each text as the only number of an embedding, as SGLang answers for reward models."""

    object: str = "list"
    model: str | None
    data: list[dict[str, Any]]


def router(batcher: Batcher, media: Callable[[], RequestMedia], rules: SizeRules) -> APIRouter:
    """``/get_reward`` for OpenRLHF, ``/classify`` and ``/v1/embeddings`` for verl.

    Args:
        batcher: scores what is asked.
        media: makes the reader of one request's media.
        rules: how much text one request may hold.
    """
    routes = APIRouter(tags=["trainers"])
    written = WrittenChats(batcher.scorer.encoder)

    @routes.post("/get_reward")
    async def get_reward(request: RewardRequest) -> RewardAnswer:
        """Answer OpenRLHF's `remote_rm_url`."""
        scores = await scores_of(request.query, request.prompts, request.images, request.videos, "query")
        raw = [score.raw for score in scores]
        logs = {"normalised_scores": [score.normalised for score in scores]}
        return RewardAnswer(rewards=raw, scores=raw, extra_logs=logs)

    @routes.post("/classify")
    async def classify(request: EngineRequest) -> ClassifyAnswer:
        """Answer verl as vLLM would: the score is the last of `probs`."""
        scores = await engine_scores(request)
        data = [
            {"index": n, "label": None, "probs": [score.raw], "num_classes": 1}
            for n, score in enumerate(scores)
        ]
        return ClassifyAnswer(model=request.model, data=data)

    @routes.post("/v1/embeddings")
    async def embeddings(request: EngineRequest) -> EmbeddingsAnswer:
        """Answer verl as SGLang would: the score is the last number of `embedding`."""
        scores = await engine_scores(request)
        data = [
            {"object": "embedding", "index": n, "embedding": [score.raw]} for n, score in enumerate(scores)
        ]
        return EmbeddingsAnswer(model=request.model, data=data)

    async def engine_scores(request: EngineRequest) -> list[Score]:
        texts = [request.input] if isinstance(request.input, str) else request.input
        images, videos = _listed(request.images), _listed(request.videos)
        return await scores_of(texts, None, images, videos, "input")

    async def scores_of(
        texts: list[str], prompts: list[str] | None, images: Any, videos: Any, name: str
    ) -> list[Score]:
        def read() -> list[Candidates]:
            rules.check_count(len(texts), name)
            every = [
                _each(own, len(texts), what)
                for own, what in ((prompts, "prompts"), (images, "images"), (videos, "videos"))
            ]
            reader, found = media(), []
            for n, (text, prompt, pictures, clips) in enumerate(zip(texts, *every, strict=True)):
                rules.check_texts(len(text), [], f"{name}[{n}]")
                found.append(
                    written.candidates(
                        text,
                        prompt=prompt,
                        images=reader.files(pictures or [], "image", f"images[{n}]"),
                        videos=reader.files(clips or [], "video", f"videos[{n}]"),
                        where=f"{name}[{n}]",
                    )
                )
            return found

        merged, places = merge_equal_prompts(await asyncio.to_thread(read))
        found = await asyncio.wrap_future(batcher.submit(merged, written.encoder))
        values = [value for own in found for value in own]
        return [values[place] for place in places]

    return routes


def _listed(files: Sequence[Any] | None) -> Sequence[Any] | None:
    """The files of each text, where those of an only text may stand alone."""
    return [files] if files and all(isinstance(one, str) for one in files) else files or None


def _each(values: Sequence[Any] | None, count: int, name: str) -> Sequence[Any]:
    if values is None:
        return [None] * count
    if len(values) != count:
        raise InputError(f"{name}: there are {len(values)} for {count} texts; give one for each")
    return values
