# SPDX-License-Identifier: Apache-2.0
"""What a service counts of itself, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from ixc_lightning.serving.libraries import (
    ASGIApp,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Message,
    Receive,
    Scope,
    Send,
    generate_latest,
)
from ixc_lightning.serving.waiting import Waiting

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = tuple(float(4**power) for power in range(3, 11))
GONE = 499
"""Status of a request whose caller left before the answer, as web servers count it."""


class Gauges:
    """Counters of one service.

    Args:
        num_waiting: tells how many requests wait or are at work.
    """

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ixc_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ixc_request_seconds",
            "Time from a request's headers to its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        queue = Gauge("ixc_queue_length", "Requests that wait or are at work.", registry=self.registry)
        queue.set_function(num_waiting)
        self.responses = Counter("ixc_responses", "Responses scored.", registry=self.registry)
        self.tokens = Counter("ixc_tokens", "Tokens scored, padding included.", registry=self.registry)
        self.batch_tokens = Histogram(
            "ixc_batch_tokens", "Tokens of a batch, padding included.", buckets=TOKENS, registry=self.registry
        )

    def count_batch(self, batch: Sequence[Waiting]) -> None:
        """Count the prompts of a batch."""
        rows = sum(one.rows for one in batch)
        tokens = rows * max(one.length for one in batch)
        self.responses.inc(rows)
        self.tokens.inc(tokens)
        self.batch_tokens.observe(tokens)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """An application whose requests are counted.

    Args:
        app: the application.
        gauges: where to count.
        endpoints: paths that are counted by their names, all others as ``other``.
    """

    def __init__(self, app: ASGIApp, gauges: Gauges, endpoints: Collection[str]) -> None:
        self.app = app
        self.gauges = gauges
        self.endpoints = frozenset(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = GONE, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
            self.gauges.requests.labels(endpoint, status).inc()
            self.gauges.seconds.labels(endpoint).observe(time.perf_counter() - start)
