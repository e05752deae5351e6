# SPDX-License-Identifier: Apache-2.0
"""The application in a thread of the test, and a model that can be held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import uvicorn

from ixc_lightning.datamodules.candidates import EncodedCandidates
from ixc_lightning.scoring import Scorer
from ixc_lightning.serving.app import build_app
from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.serving.requests import SizeRules

STARTS = 60.0  # seconds, on a busy machine


class Gated(Scorer):
    """A scorer whose model waits until it is let through."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer.model, scorer.encoder)
        self.gate = threading.Event()
        self.sizes: list[int] = []

    def score_encoded(self, samples: Sequence[EncodedCandidates], *, size: int) -> list[list[float]]:
        """Wait, then score."""
        assert self.gate.wait(STARTS)
        self.sizes.append(len(samples))
        return super().score_encoded(samples, size=size)


MEDIA = {
    "max_media": 5,
    "max_bytes": 1_000_000,
    "max_pixels": 100_000,
    "max_clip_pixels": 100_000,
    "folder": None,
    "allow_urls": False,
}
APP = {
    "batch_tokens": 1024,
    "max_requests": 64,
    "max_body_bytes": 1_000_000,
    "max_held_bytes": 8_000_000,
    "seconds": 60.0,
}


@contextmanager
def serving(
    scorer: Scorer,
    *,
    max_responses: int = 8,
    max_characters: int = 2000,
    media: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[httpx.Client]:
    """A client of the application, which runs in a thread until the block is left."""
    app = build_app(
        scorer,
        media=partial(RequestMedia, **{**MEDIA, **(media or {})}),
        rules=SizeRules(max_responses=max_responses, max_characters=max_characters),
        **{**APP, **options},
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + STARTS
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=STARTS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + STARTS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
