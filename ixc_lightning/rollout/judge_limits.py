# SPDX-License-Identifier: Apache-2.0
"""What a paid judge may take: requests and tokens a minute, and tokens or money altogether.

Libraries that pace requests want the weight of each before it is sent. What a request weighs in tokens is
known when its reply is there: here it is guessed first, and set right then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from ixc_lightning.types import InputError

WINDOW = 60.0
"""Seconds of a minute."""
PER_PRICE = 1_000_000
"""Tokens that a price is for."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what is asked of a server. What an earlier run was told, from the cache, counts as spent too.

    Args:
        concurrency: requests under way at a time.
        requests_per_minute: most requests in any minute; null is any number.
        tokens_per_minute: most tokens in any minute, of requests and replies together; null is any number.
        total_tokens: nothing more is asked when the next request would go beyond so many; null is any number.
        total_cost: nothing more is asked when the next request would cost more than this altogether.
        input_price: of a million tokens of requests, in the unit of ``total_cost``.
        output_price: of a million tokens of replies.

    Raises:
        InputError: a bound is not positive, or ``total_cost`` is given without a price.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    total_tokens: int | None = None
    total_cost: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        bounds = ("concurrency", "requests_per_minute", "tokens_per_minute", "total_tokens", "total_cost")
        for name in bounds:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"limits.{name} is {value}, but must be positive")
        if self.total_cost is not None and not self.input_price + self.output_price > 0:
            raise InputError("limits.total_cost needs limits.input_price and limits.output_price")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """What tokens cost."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / PER_PRICE


class Meter:
    """Lets requests through as the limits allow, and knows what was spent. For any number of threads.

    Args:
        limits: the bounds.
        max_output: most tokens of a reply.

    Attributes:
        input_tokens: of all requests whose replies are there.
        output_tokens: of these replies.
    """

    def __init__(self, limits: Limits, *, max_output: int) -> None:
        self.limits = limits
        self.max_output = max_output
        self.input_tokens = self.output_tokens = 0
        self._reserved = 0  # requests under way
        self._largest = 0  # tokens of a request
        self._sent: deque[list[float]] = deque()  # time and tokens of the requests of the last minute
        self._opens = 0.0
        self._lock = threading.Lock()
        self._gate = threading.Lock()  # held by the one that waits, so that all others stand in line

    @property
    def cost(self) -> float:
        """What the replies cost up to now."""
        return self.limits.cost(self.input_tokens, self.output_tokens)

    def reserve(self, guess: int) -> bool:
        """Whether one more request of about ``guess`` tokens keeps to the totals; ``settle`` must follow."""
        with self._lock:
            self._largest = max(self._largest, guess)
            ahead = self._reserved + 1
            tokens_in = self.input_tokens + ahead * self._largest
            tokens_out = self.output_tokens + ahead * self.max_output
            limits = self.limits
            if limits.total_tokens is not None and tokens_in + tokens_out > limits.total_tokens:
                return False
            if limits.total_cost is not None and limits.cost(tokens_in, tokens_out) > limits.total_cost:
                return False
            self._reserved += 1
            return True

    def settle(self, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Note what a reserved request took; nothing if no reply came."""
        with self._lock:
            self._reserved -= 1
        self.add(input_tokens, output_tokens)

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """Note what was paid, now or in an earlier run."""
        with self._lock:
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self._largest = max(self._largest, input_tokens)

    def wait(self, guess: int, stop: threading.Event) -> list[float]:
        """Wait until a request may be sent, or until ``stop``.

        Returns:
            Time and tokens of the request; set the second right when the reply says it.
        """
        with self._gate:
            while (delay := self._delay(guess)) > 0 and not stop.wait(delay):
                pass
            sent = [time.monotonic(), float(guess)]
            with self._lock:
                self._sent.append(sent)
            return sent

    def hold(self, seconds: float) -> None:
        """Let nobody through for some time: the server said so."""
        with self._lock:
            self._opens = max(self._opens, time.monotonic() + seconds)

    def _delay(self, guess: int) -> float:
        with self._lock:
            now = time.monotonic()
            while self._sent and self._sent[0][0] <= now - WINDOW:
                self._sent.popleft()
            delay = self._opens - now
            limits, sent = self.limits, self._sent
            if limits.requests_per_minute is not None and len(sent) + 1 > max(limits.requests_per_minute, 1):
                delay = max(delay, sent[0][0] + WINDOW - now)
            tokens = sum(tokens for _, tokens in sent) + guess
            # A request alone goes through, however large it is.
            if limits.tokens_per_minute is not None and sent and tokens > limits.tokens_per_minute:
                delay = max(delay, sent[0][0] + WINDOW - now)
            return delay
