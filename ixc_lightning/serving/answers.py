# SPDX-License-Identifier: Apache-2.0
"""The service's own endpoints: the scorer's verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ixc_lightning.scoring import Comparison, merge_equal_prompts, ranks
from ixc_lightning.serving import requests
from ixc_lightning.serving.batcher import Batcher
from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.serving.libraries import APIRouter
from ixc_lightning.serving.requests import SizeRules
from ixc_lightning.serving.schemas import (
    CompareAnswer,
    CompareRequest,
    RankAnswer,
    RankRequest,
    ScoreAnswer,
    ScoreRequest,
)


def router(batcher: Batcher, media: Callable[[], RequestMedia], rules: SizeRules) -> APIRouter:
    """``/score``, ``/compare`` and ``/rank``.

    Args:
        batcher: scores what is asked.
        media: makes the reader of one request's media.
        rules: how much text one request may hold.
    """
    routes = APIRouter(tags=["scores"])

    @routes.post("/score")
    async def score(request: ScoreRequest) -> ScoreAnswer:
        """Score each conversation's last turn; prompts that are equal are encoded once."""
        given = await asyncio.to_thread(requests.conversations, request, media(), rules)
        merged, places = merge_equal_prompts(given)
        values = [value for own in await asyncio.wrap_future(batcher.submit(merged)) for value in own]
        return ScoreAnswer(
            scores=[values[place].raw for place in places],
            normalised_scores=[values[place].normalised for place in places],
        )

    @routes.post("/compare")
    async def compare(request: CompareRequest) -> CompareAnswer:
        """Say which of two responses is preferred, and how surely."""
        found = Comparison(*(await scores_of(request, [request.a, request.b]))[0])
        return CompareAnswer(a=found.a, b=found.b, preferred=found.preferred, probability=found.probability)

    @routes.post("/rank")
    async def rank(request: RankRequest) -> RankAnswer:
        """Rank any number of responses to one prompt, which is encoded once."""
        raw, normalised = await scores_of(request, request.responses)
        return RankAnswer(ranks=ranks(raw), scores=raw, normalised_scores=normalised)

    async def scores_of(
        request: CompareRequest | RankRequest, responses: list[str]
    ) -> tuple[list[float], list[float]]:
        one = await asyncio.to_thread(
            requests.prompt,
            request.conversation,
            responses,
            request.images,
            request.videos,
            media(),
            rules,
        )
        (scores,) = await asyncio.wrap_future(batcher.submit([one]))
        return [score.raw for score in scores], [score.normalised for score in scores]

    return routes
