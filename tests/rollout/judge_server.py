# SPDX-License-Identifier: Apache-2.0
"""A server of chat completions on loopback that reads requests as OpenAI's does, with faults by a script."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "sk-secret-of-the-test"
RESPONSES = re.compile(r"=== response A ===\n(.*)\n=== response B ===\n(.*)\n=== end ===", re.DOTALL)
ROLES = ("system", "user", "assistant")


@dataclass
class Fault:
    """What the server does instead of judging.

    Attributes:
        status: of the reply; 0 closes the connection without one.
        body: of the reply; null is an error as OpenAI tells it.
        headers: beside the usual ones.
        code: of the error.
        delay: seconds before the reply.
    """

    status: int = 500
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    delay: float = 0.0


@dataclass
class Asked:
    """A request as the server understood it."""

    a: str
    b: str
    pictures: list[tuple[str, tuple[int, int]]]
    text: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float


def prefers_good(asked: Asked) -> dict[str, Any]:
    """Prefers the response that says "good", wherever it stands."""
    sides = ["good" in asked.a, "good" in asked.b]
    verdict = "tie" if sides[0] == sides[1] else "A" if sides[0] else "B"
    return {"content": f"Response A says {asked.a!r}.\n\nVerdict: {verdict}"}


class JudgeServer:
    """Judges by a rule, once its faults are used up.

    Args:
        rule: gives the message of the reply, with ``finish_reason`` and ``usage`` beside it if need be.
    """

    def __init__(self, rule: Callable[[Asked], dict[str, Any]] = prefers_good) -> None:
        self.rule = rule
        self.usage = {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60}
        self.faults: deque[Fault] = deque()
        self.asked: list[Asked] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Both responses of each request that was judged, in the order in which they came."""
        return [(asked.a, asked.b) for asked in self.asked]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            fault = self.faults.popleft() if self.faults else None
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if fault is not None:
                time.sleep(fault.delay)
                self.fail(handler, fault)
            elif handler.path != "/v1/chat/completions":
                self.fail(handler, Fault(404))
            elif handler.headers["Authorization"] not in (f"Bearer {KEY}", "Bearer none"):
                self.fail(handler, Fault(401, code=f"wrong key {handler.headers['Authorization']}"))
            else:
                self.judge(handler, understood(json.loads(data), dict(handler.headers)))
        finally:
            with self.lock:
                self.under_way -= 1

    def judge(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        """Reply with a completion."""
        with self.lock:
            self.asked.append(asked)
        message = self.rule(asked)
        usage = message.pop("usage", self.usage)
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": asked.body["model"] + "-2025-01-21",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": message.pop("finish_reason", "stop"),
                    "message": {"role": "assistant", **message},
                }
            ],
            "usage": usage,
        }
        send(handler, 200, json.dumps(completion).encode(), {})

    def fail(self, handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        """Reply with an error, or not at all."""
        if not fault.status:
            handler.close_connection = True
            return
        error = {"message": f"fault {fault.status} {fault.code or ''}", "type": "fault", "code": fault.code}
        body = json.dumps({"error": error}).encode() if fault.body is None else fault.body
        send(handler, fault.status, body, fault.headers)


def understood(body: dict[str, Any], headers: dict[str, str]) -> Asked:
    """A request, read as strictly as servers do; anything odd about it raises, and gets no reply."""
    assert {message["role"] for message in body["messages"]} <= set(ROLES)
    parts = []
    for message in body["messages"]:
        content = message["content"]
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    pictures = []
    for part in parts:
        assert part["type"] in ("text", "image_url")
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(";base64,")
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                image.load()
                assert Image.MIME[image.format] == head.removeprefix("data:")
                pictures.append((head.removeprefix("data:"), image.size))
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    found = RESPONSES.search(text)
    a, b = found.groups() if found else ("", "")
    return Asked(a, b, pictures, text, body, headers, time.monotonic())


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    """Send a reply; whoever does not wait for it is none of the server's business."""
    try:
        handler.send_response(status)
        all_headers = {
            "Content-Type": "application/json",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        for name, value in {**all_headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
    except OSError:
        handler.close_connection = True


@contextmanager
def serving(server: JudgeServer) -> Iterator[JudgeServer]:
    """The server at an address of its own, ``url``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.answer(self)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """Say nothing: a client that went away is part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}/v1"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
