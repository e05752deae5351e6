# SPDX-License-Identifier: Apache-2.0
"""A model hub on this machine: the few endpoints that an upload uses, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_loopback"
LARGE = ".safetensors"


class Hub:
    """What the hub holds, and what was asked of it.

    Attributes:
        files: content of the repository's files by name; those that are large are told by their checksum.
        objects: content of the large files that arrived, by checksum.
        commits: the lines of every commit, as they were sent.
        cards: front matter and page of every card that was to be checked.
        private: whether the repository is, once it was made.
        uploads: checksums of the large files in the order of their arrival.
        max_uploads: how many of them are taken; null is all.
        has_rival: whether somebody else commits while they arrive.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.cards: list[str] = []
        self.private: bool | None = None
        self.uploads: list[str] = []
        self.max_uploads: int | None = None
        self.has_rival = False
        self.url = ""

    @property
    def sha(self) -> str:
        """Names the state of the repository."""
        return f"{len(self.commits):040x}"


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port of the loopback interface."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any = None, **headers: str) -> None:
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def is_known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def do_GET(self) -> None:
            if not self.is_known():
                return self.answer(401, {"error": "who are you?"})
            siblings = [{"rfilename": name} for name in hub.files]
            found = {"id": "me/mine", "modelId": "me/mine", "sha": hub.sha, "siblings": siblings}
            return self.answer(200, {**found, "private": hub.private, "tags": [], "downloads": 0, "likes": 0})

        def do_PUT(self) -> None:
            data = self.body()
            if hub.max_uploads is not None and len(hub.uploads) >= hub.max_uploads:
                return self.answer(400, {"error": "the store is full"})
            digest = hashlib.sha256(data).hexdigest()
            hub.uploads.append(digest)
            if hub.has_rival:
                hub.commits.append([])
                hub.has_rival = False
            hub.objects[digest] = data
            return self.answer(200, ETag=digest)

        def do_POST(self) -> None:
            data = self.body()
            if not self.is_known():
                return self.answer(401, {"error": "who are you?"})
            if self.path.endswith("/validate-yaml"):
                hub.cards.append(json.loads(data)["content"])
                return self.answer(200, {"errors": [], "warnings": []})
            if self.path.endswith("/repos/create"):
                if hub.private is not None:
                    return self.answer(409, {"error": "it is there", "url": f"{hub.url}/me/mine"})
                hub.private = json.loads(data).get("visibility") == "private"
                return self.answer(200, {"url": f"{hub.url}/me/mine", "name": "me/mine"})
            if "/preupload/" in self.path:
                named = [one["path"] for one in json.loads(data)["files"]]
                modes = [
                    {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular"}
                    for name in named
                ]
                return self.answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            if self.path.endswith("/info/lfs/objects/batch"):
                return self.answer(
                    200, {"transfer": "basic", "objects": list(map(instruct, json.loads(data)["objects"]))}
                )
            if "/commit/" in self.path:
                lines = [json.loads(line) for line in data.splitlines()]
                if lines[0]["value"].get("parentCommit") not in (None, hub.sha):
                    return self.answer(412, {"error": "somebody else has committed"})
                hub.commits.append(lines)
                apply(lines)
                return self.answer(
                    200,
                    {
                        "commitUrl": f"{hub.url}/me/mine/commit/{hub.sha}",
                        "commitOid": hub.sha,
                        "success": True,
                    },
                )
            return self.answer(404, {"error": self.path})

    def instruct(wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in hub.objects:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{hub.url}/store/{wanted['oid']}"}}}

    def apply(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del hub.files[value["path"]]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
