# SPDX-License-Identifier: Apache-2.0
"""What every request passes before it is looked at: who asks, how much they send, and how long it may take.

Frameworks read a body whole before any of their own checks run, so its size is bounded here.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection, Mapping

from ixc_lightning.serving.libraries import ASGIApp, JSONResponse, Message, Receive, Scope, Send

DRAINED_BODIES = 64
"""A refused body is read to its end and dropped, up to this many times the limit: a client that is still
sending when the connection closes may never see the answer."""
RETRY_SECONDS = 1


class RefusedError(Exception):
    """A request that is not looked at.

    Args:
        status: of HTTP.
        reason: for the caller.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class GoneError(Exception):
    """The caller left."""


class _Body:
    """What has come of a body, whether that is all, and the bytes for which it is held to account."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.is_whole = False

    def add(self, part: bytes) -> None:
        self.parts.append(part)
        self.size += len(part)

    def joined(self) -> bytes:
        whole = b"".join(self.parts)
        self.parts.clear()
        return whole


def failure(status: int, reason: str) -> JSONResponse:
    """The answer that says why there is no other one."""
    headers = {
        401: {"WWW-Authenticate": "Bearer"},
        408: {"Connection": "close"},  # the rest of the body would follow
        503: {"Retry-After": str(RETRY_SECONDS)},
    }
    # A lone half of a surrogate pair, which a caller may have sent, has no UTF-8.
    reason = reason.encode(errors="backslashreplace").decode()
    return JSONResponse({"error": reason}, status, headers.get(status))


class Guard:
    """Lets requests through to an application with their body read, and watches over them.

    Args:
        app: the application.
        token: that callers must send as ``Authorization: Bearer``; empty lets everyone in.
        open_paths: paths for which no token is needed.
        max_body_bytes: most bytes of a body.
        max_held_bytes: most bytes of all bodies that are being received or at work.
        seconds: time for receiving a body, and again for answering it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        open_paths: Collection[str],
        max_body_bytes: int,
        max_held_bytes: int,
        seconds: float,
    ) -> None:
        self.app = app
        self.token = token
        self.open_paths = frozenset(open_paths)
        self.max_body_bytes = max_body_bytes
        self.max_held_bytes = max_held_bytes
        self.seconds = seconds
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body()
        try:
            await self._receive(scope["path"], headers, receive, body)
            await self._answer(scope, body.joined(), receive, send)
        except RefusedError as error:
            await failure(error.status, str(error))(scope, receive, send)
        except GoneError:
            pass
        finally:
            self._release(body)

    async def _receive(self, path: str, headers: Mapping[str, str], receive: Receive, body: _Body) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                try:
                    self._check(path, headers)
                    await self._read(receive, body)
                except RefusedError:
                    self._release(body)
                    await self._drain(receive, headers, body)
                    raise
        except TimeoutError:
            raise RefusedError(408, f"the request did not arrive within {self.seconds:g} s") from None

    def _check(self, path: str, headers: Mapping[str, str]) -> None:
        if self.token and path not in self.open_paths:
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                raise RefusedError(401, "give the service's token as Authorization: Bearer TOKEN")
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "the body is compressed; send it as it is")
        if int(headers.get("content-length", 0)) > self.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body has more than {self.max_body_bytes:,} bytes; send less at once")

    async def _read(self, receive: Receive, body: _Body) -> None:
        while not body.is_whole:
            part, body.is_whole = await _part(receive)
            self.held_bytes += len(part)
            body.add(part)
            if body.size > self.max_body_bytes:
                raise self._too_large()
            if self.held_bytes > self.max_held_bytes:
                raise RefusedError(503, "the service holds too many requests; send it again later")

    def _release(self, body: _Body) -> None:
        self.held_bytes -= body.size
        body.size = 0
        body.parts.clear()

    async def _drain(self, receive: Receive, headers: Mapping[str, str], body: _Body) -> None:
        """Take what the caller still sends of a body, or it would not read the answer."""
        if headers.get("expect", "").lower() == "100-continue":
            return  # the body was never sent
        left = DRAINED_BODIES * self.max_body_bytes
        while not body.is_whole and left > 0:
            part, body.is_whole = await _part(receive)
            left -= len(part)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        is_started = False
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        leaving = asyncio.ensure_future(receive())  # behind the body comes only that the caller left

        async def replay() -> Message:
            return parts.pop() if parts else await asyncio.shield(leaving)

        async def noting(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        answering = asyncio.ensure_future(self.app(scope, replay, noting))
        try:
            await asyncio.wait(
                {answering, leaving}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done() or is_started:
                await answering
            elif leaving.done():
                raise GoneError
            else:
                raise RefusedError(504, f"no answer within {self.seconds:g} s; send less at once, or later")
        finally:
            leaving.cancel()
            answering.cancel()


async def _part(receive: Receive) -> tuple[bytes, bool]:
    """The next part of a body, and whether it was the last."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise GoneError
    return message.get("body", b""), not message.get("more_body", False)
