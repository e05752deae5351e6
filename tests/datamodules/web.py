# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine that serves files from memory, and fails as it is told."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

CUT, DROPPED = "cut", "dropped"


class Web:
    """What the server serves, and what it was asked.

    Attributes:
        files: body by path, without the leading slash.
        failures: what happens instead, once each and in order: an HTTP status, ``CUT`` for half the body, or
            ``DROPPED`` for a connection that closes without an answer.
        gets: how often each path was asked for.
        gate: answers wait for it.
        url: address of the root.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.failures: defaultdict[str, deque[int | str]] = defaultdict(deque)
        self.gets: Counter[str] = Counter()
        self.gate = Event()
        self.gate.set()
        self.url = ""

    def put(self, folder: Path, name: str) -> None:
        """Serve the files of a folder, and of those below it, below ``name``."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{name}/{path.relative_to(folder)}"] = path.read_bytes()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from the ``Web`` of its server."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        web: Web = self.server.web
        name = self.path.lstrip("/")
        web.gets[name] += 1
        web.gate.wait(timeout=60)
        failure = web.failures[name].popleft() if web.failures[name] else None
        if isinstance(failure, int):
            self.send_error(failure)
        elif failure == DROPPED:
            self.close_connection = True
        else:
            self._answer(half=failure == CUT)

    def _answer(self, *, half: bool = False) -> None:
        name = self.path.lstrip("/")
        body = self._body(name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if name.endswith("/") else "application/octet-stream")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = True

    def _body(self, name: str) -> bytes | None:
        files = self.server.web.files
        if not name.endswith("/"):
            return files.get(name)
        below = sorted(file.removeprefix(name) for file in files if file.startswith(name))
        return "".join(f'<a href="{file}">{file}</a>\n' for file in below).encode()


@contextmanager
def serve() -> Iterator[Web]:
    """Serve until the block ends."""
    web = Web()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.web = web
        web.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.gate.set()
            server.shutdown()
            thread.join()
