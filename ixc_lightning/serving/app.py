# SPDX-License-Identifier: Apache-2.0
"""The application: its own endpoints, those that trainers post to, health and metrics."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ixc_lightning import __version__
from ixc_lightning.scoring import Scorer
from ixc_lightning.serving import answers, trainers
from ixc_lightning.serving.batcher import Batcher, BusyError, FaultError
from ixc_lightning.serving.gauges import Gauges, Measured
from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.serving.guard import Guard, failure
from ixc_lightning.serving.libraries import (
    CONTENT_TYPE_LATEST,
    ASGIApp,
    FastAPI,
    HTTPException,
    JSONResponse,
    Request,
    RequestValidationError,
    Response,
)
from ixc_lightning.serving.requests import SizeRules
from ixc_lightning.serving.schemas import Failure, Health
from ixc_lightning.types import InputError

HEALTH = ("/health/live", "/health/ready")
PAGES = ("/docs", "/openapi.json")
SHOWN = 500
"""Characters of a reason that are sent back, since it may repeat what a caller sent."""
ABOUT = """\
Scores, comparisons and rankings of responses to prompts of text, pictures and clips.

Media come in base64 or as data URLs. What fails says why: 400 for what is no JSON, 401 without the token,
413 for a body that is too large, 422 for a request that cannot be scored, 503 with `Retry-After` when too
many wait.
"""
REASONS = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON, or is compressed.",
    422: "The request cannot be scored.",
    503: "Too many requests wait.",
    504: "It took too long.",
}

logger = logging.getLogger(__name__)


def build_app(
    scorer: Scorer,
    *,
    media: Callable[[], RequestMedia],
    rules: SizeRules,
    batch_tokens: int,
    max_requests: int,
    max_body_bytes: int,
    max_held_bytes: int,
    seconds: float,
    token: str = "",
) -> ASGIApp:
    """The service as an ASGI application, whose threads run from its startup to its shutdown.

    Args:
        scorer: the reward model and its processor.
        media: makes the reader of one request's media.
        rules: how much text one request may hold.
        batch_tokens: most tokens of one forward pass, padding included.
        max_requests: requests that may wait or be at work.
        max_body_bytes: most bytes of a body.
        max_held_bytes: most bytes of all bodies together.
        seconds: time for receiving a request, and again for answering it.
        token: that callers must send; empty lets everyone in.
    """
    gauges = Gauges(lambda: batcher.num_open)
    batcher = Batcher(
        scorer, batch_tokens=batch_tokens, max_requests=max_requests, on_batch=gauges.count_batch
    )

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.close()

    app = FastAPI(
        title="Reward model",
        description=ABOUT,
        version=__version__,
        lifespan=running,
        redoc_url=None,
        responses={status: {"model": Failure, "description": text} for status, text in REASONS.items()},
    )
    app.include_router(answers.router(batcher, media, rules))
    app.include_router(trainers.router(batcher, media, rules))
    _add_health(app, batcher)
    _add_metrics(app, gauges)
    _add_handlers(app)
    endpoints = set(app.openapi()["paths"])
    guarded = Guard(
        app,
        token=token,
        open_paths=(*HEALTH, *PAGES),
        max_body_bytes=max_body_bytes,
        max_held_bytes=max_held_bytes,
        seconds=seconds,
    )
    return Measured(guarded, gauges, endpoints)


def _add_health(app: FastAPI, batcher: Batcher) -> None:
    @app.get("/health/live", tags=["state"], response_model=Health, responses={503: {"model": Health}})
    async def live() -> JSONResponse:
        """Whether the service is at work; if not, start it anew."""
        return _state("ok" if batcher.is_alive else "stopped")

    @app.get("/health/ready", tags=["state"], response_model=Health, responses={503: {"model": Health}})
    async def ready() -> JSONResponse:
        """Whether the next request would be taken."""
        return _state("stopped" if not batcher.is_alive else "busy" if batcher.is_full else "ok")


def _state(status: str) -> JSONResponse:
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


def _add_metrics(app: FastAPI, gauges: Gauges) -> None:
    @app.get("/metrics", tags=["state"], response_class=Response)
    async def metrics() -> Response:
        """Requests by status, queue length, tokens and latency, in Prometheus' text format."""
        return Response(gauges.text(), media_type=CONTENT_TYPE_LATEST)


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return failure(422, str(error)[:SHOWN])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return failure(400, f"the body is no JSON: {first['ctx']['error']}")
        if "json" not in request.headers.get("content-type", ""):
            return failure(415, "send JSON, and say so with Content-Type: application/json")
        return failure(422, f"{field_of(first['loc'])}: {first['msg']}"[:SHOWN])

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return failure(503, str(error))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return failure(error.status_code, error.detail)

    # What is not known is logged by the server too, which then closes the connection.
    @app.exception_handler(FaultError)
    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return failure(500, "the service failed on this request; its log says why")


def field_of(place: Sequence[str | int]) -> str:
    """Where a request is wrong, as one would write it: ``conversations[0][1].content``.

    Args:
        place: names and numbers from the body down, with the names of the variants that were tried.
    """
    names, after_part = "", False
    is_in_parts = False
    for name in place[1:]:
        if name == "parts":
            is_in_parts = True
        elif isinstance(name, int):
            names += f"[{name}]"
            after_part = is_in_parts
        elif after_part and names.endswith("]") and name in ("text", "image", "video"):
            after_part = False  # the variant of a part, by its type
        else:
            names += f".{name}" if names else name
    return names or "the body"
