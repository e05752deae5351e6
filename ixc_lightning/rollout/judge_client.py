# SPDX-License-Identifier: Apache-2.0
"""Chat completions of a server that speaks as OpenAI's does, asked patiently and within limits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from ixc_lightning.rollout.judge_limits import Limits, Meter
from ixc_lightning.rollout.judge_replies import Reply, guess_tokens, read_reply
from ixc_lightning.types import InputError

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between tries where the server names none; the wait doubles."""
LONGEST_RETRY_AFTER = 900.0
"""Seconds that a server may ask to wait; for more, a run is better started again later."""
SHOWN = 300
"""Letters of what a server said that a message repeats."""


class TransientError(Exception):
    """It may go well another time. ``after`` are the seconds that the server asks to wait."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class UnanswerableError(Exception):
    """The server takes no such request: it is too long, say, or its picture too large."""


class ChatClient:
    """Asks a server for chat completions; by the ``openai`` package, whose own tries are switched off.

    Its tries would pass by the limits, and give up where a server asks for more than a minute's patience.
    A try is made again after 408, 409, 429 and 5xx, a timeout, a connection that broke, and a reply that is
    no completion; later each time, and never before ``Retry-After``. The key is read from the environment
    and is never written anywhere.

    Needs ``pip install 'ixc-lightning[judge]'``.

    Args:
        model: name of the model, as the server knows it.
        base_url: address up to and with ``/v1``; null is OpenAI's, or that of ``OPENAI_BASE_URL``.
        api_key_variable: name of the environment variable that holds the key; null is for servers
            that ask for none.
        limits: what may be asked and spent.
        max_tokens: most tokens of a reply.
        max_tokens_field: what the server calls that: newer models of OpenAI know only the second.
        temperature: of the sampling; null leaves it to the server.
        timeout: seconds for a reply.
        tries: of each request.
        extra: further fields of every request, such as ``{"reasoning_effort": "low"}``.

    Raises:
        InputError: the package or the key is missing, or a value is out of its range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_variable: str | None = "OPENAI_API_KEY",
        limits: Limits | None = None,
        max_tokens: int = 1024,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        temperature: float | None = 0.0,
        timeout: float = 120.0,
        tries: int = 8,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if max_tokens < 1 or tries < 1 or not timeout > 0:
            raise InputError(
                f"client.max_tokens is {max_tokens}, .tries {tries} and .timeout {timeout}, but all must be "
                "positive"
            )
        for name in ("openai", "tenacity"):
            if find_spec(name) is None:
                raise InputError(f"a judge needs {name}: pip install 'ixc-lightning[judge]'")
        self.openai, self.tenacity = import_module("openai"), import_module("tenacity")
        self.key = _key(api_key_variable)
        self.model = model
        self.limits = limits or Limits()
        self.meter = Meter(self.limits, max_output=max_tokens)
        self.tries = tries
        self.fields: dict[str, Any] = {max_tokens_field: max_tokens, **(extra or {})}
        if temperature is not None:
            self.fields["temperature"] = temperature
        self.stop = threading.Event()
        self.requests = 0
        self.retries = 0
        self._counting = threading.Lock()
        options = {"api_key": self.key or "none", "base_url": base_url, "timeout": timeout, "max_retries": 0}
        self._connect = partial(self.openai.OpenAI, **options)
        self.client = self._connect()
        address = urlsplit(str(self.client.base_url))
        port = f":{address.port}" if address.port else ""
        self.server = f"{address.scheme}://{address.hostname}{port}{address.path}".rstrip("/")

    def ask(self, messages: Sequence[dict[str, Any]]) -> Reply | None:
        """The reply to messages; None where the limits allow no further request.

        Raises:
            UnanswerableError: the server takes no such request.
            InputError: it refuses the key or the model, or every try failed.
        """
        guess = guess_tokens(messages)
        if not self.meter.reserve(guess):
            return None
        reply = None
        try:
            retrying = self.tenacity.Retrying(
                stop=self.tenacity.stop_after_attempt(self.tries)
                | self.tenacity.stop_when_event_set(self.stop),
                wait=self._pause,
                retry=self.tenacity.retry_if_exception_type(TransientError),
                sleep=self.tenacity.sleep_using_event(self.stop),
                reraise=True,
            )
            reply = retrying(self._try, messages, guess)
        except TransientError as error:
            raise InputError(
                f"{self.server}: {self.tries} tries in a row failed, the last because {error}. Run again "
                "later with the same folder: nothing is answered or judged twice"
            ) from error
        finally:
            self.meter.settle(*((reply.input_tokens, reply.output_tokens) if reply else ()))
        return reply

    def close(self) -> None:
        """Close the connections; another request opens new ones."""
        self.client.close()
        self.client = self._connect()

    def _pause(self, state: Any) -> float:
        """Seconds until the next try."""
        with self._counting:
            self.retries += 1
        error = state.outcome.exception()
        doubling = self.tenacity.wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)
        chance = self.tenacity.wait_random(0, FIRST_WAIT)  # so that threads do not come back all at once
        return max(error.after, doubling(state) + chance(state))

    def _try(self, messages: Sequence[dict[str, Any]], guess: int) -> Reply:
        sent = self.meter.wait(guess, self.stop)
        with self._counting:
            self.requests += 1
        try:
            completion = self.client.chat.completions.create(
                model=self.model, messages=messages, extra_body=self.fields
            )
            reply = read_reply(completion, guess=guess)
        except self.openai.APIStatusError as error:
            return self._refused(error, guess)
        except self.openai.APITimeoutError as error:
            raise TransientError("no reply came in time") from error
        except self.openai.APIConnectionError as error:
            raise TransientError(f"the connection failed ({error.__cause__ or error})") from error
        except (ValueError, TypeError, AttributeError, IndexError, self.openai.OpenAIError) as error:
            problem = f"its reply is no chat completion ({self._shown(error)})"
            raise TransientError(problem) from error
        sent[1] = float(reply.input_tokens + reply.output_tokens)
        return reply

    def _refused(self, error: Any, guess: int) -> Reply:
        """The refusal that an error status is, if it is about the content; else raises what it is."""
        status, said = error.status_code, self._shown(error)
        if error.code in ("content_filter", "content_policy_violation"):
            return Reply("", said, "content_filter", self.model, guess, 0)
        if status in (408, 409, 429) or status >= 500:
            if error.code == "insufficient_quota":
                raise InputError(f"{self.server}: {said}; pay in, and run again with the same folder")
            after = _retry_after(error.response.headers.get("retry-after"))
            if after > LONGEST_RETRY_AFTER:
                raise InputError(
                    f"{self.server} asks to wait for {after:,.0f} seconds; run again then, with the same "
                    "folder"
                )
            self.meter.hold(after)
            raise TransientError(f"it said {status}: {said}", after) from error
        if status in (401, 403):
            raise InputError(
                f"{self.server} refuses the key ({status}: {said}); look at the environment variable that "
                "client.api_key_variable names"
            ) from error
        if status == 404:
            raise InputError(
                f"{self.server} does not know the address or the model {self.model!r} ({said}); look at "
                "client.base_url, which ends with /v1, and client.model"
            ) from error
        raise UnanswerableError(f"{status}: {said}") from error

    def _shown(self, error: Exception) -> str:
        """What went wrong, in one line, without the key, which some servers repeat."""
        text = " ".join(str(error).split())
        return (text.replace(self.key, "…") if self.key else text)[:SHOWN]


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    if not os.environ.get(variable):
        raise InputError(
            f"the environment has no {variable}: set it to the key of the judge's server, name another "
            "variable by client.api_key_variable, or give null for a server that asks for none"
        )
    return os.environ[variable]


def _retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After``, which names them or a date; 0 without one that can be read."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
    except ValueError:
        return 0.0
