# SPDX-License-Identifier: Apache-2.0
"""What a paid judge said, on the disk from the moment that it said it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from ixc_lightning.rollout.judge_replies import Reply
from ixc_lightning.types import InputError


def judgment_key(model: str, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> str:
    """What names a reply: all that was sent for it, pictures included; not who was asked."""
    text = json.dumps([model, messages, fields], sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Judgments:
    """Replies by their keys, in JSON lines. Every run writes a file of its own and reads those of all.

    A line that a killed process left half written is none.

    Args:
        folder: made when something is written.

    Raises:
        InputError: naming file and line, if one is no judgment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replies: dict[str, Reply] = {}
        for path in sorted(folder.glob("*.jsonl")):
            self.replies.update(_read(path))
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def get(self, key: str) -> Reply | None:
        """The reply of this name, if there is one."""
        return self.replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is safe from the end of this process once this returns."""
        line = json.dumps({"key": key, **reply._asdict()}, ensure_ascii=False)
        with self._lock:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
                self._file = path.open("x", encoding="utf-8", errors="surrogatepass")
            self._file.write(line + "\n")
            self._file.flush()
            self.replies[key] = reply

    def close(self) -> None:
        """End writing."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _read(path: Path) -> dict[str, Reply]:
    found = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                raw = json.loads(line.decode("utf-8", "surrogatepass"))
                key = str(raw.pop("key"))
                found[key] = Reply(**raw)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{path}, line {number}: is no judgment ({error}); delete the line, or the file, and "
                    "what it held is judged again"
                ) from error
    return found
