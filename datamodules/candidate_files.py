# SPDX-License-Identifier: Apache-2.0
"""Where responses to be scored are read from: shards, or lines of JSON that name their media."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ixc_lightning.datamodules.conversations import UNKNOWN, Candidates, candidates_of, given_candidates
from ixc_lightning.datamodules.record_checks import Place, check_text, load_json, require
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError

FIELDS = ("id", "domain", "messages", "response", "responses", "images", "videos")
"""Every field that a line of JSON may have."""
JSON_LINES = ".jsonl"


@runtime_checkable
class CandidateSource(Protocol):
    """Prompts with responses, by number."""

    def __len__(self) -> int:
        """Number of prompts."""

    def candidates(self, index: int) -> Candidates:
        """Return the prompt of that number with its responses; raises ``InputError`` if it is not valid."""

    def place(self, index: int) -> tuple[str, str]:
        """Return file and key of a prompt, for messages."""

    @property
    def fingerprint(self) -> str:
        """What differs when other data are read."""


class ShardCandidates:
    """Both responses of preference records, or the last turn of instruction records.

    Args:
        shards: as in ``ShardDataset``.
        kind: ``preference`` or ``instruction``.

    Raises:
        InputError: as ``ShardDataset``.
    """

    def __init__(self, shards: str | Sequence[str], *, kind: Kind) -> None:
        self.records = ShardDataset(shards, kind=kind)

    def __len__(self) -> int:
        return len(self.records)

    def candidates(self, index: int) -> Candidates:
        """Return the responses of a record; raises ``InputError`` if it is not valid."""
        return candidates_of(self.records.record(index))

    def place(self, index: int) -> tuple[str, str]:
        """Return shard and key of a record."""
        try:
            return self.records.place(index)
        except InputError:  # the index of its shard is damaged, so nobody knows its key
            return "", ""

    @property
    def fingerprint(self) -> str:
        """Of the number of records in each shard, by its name."""
        return _digest(
            [
                f"{shard}:{count}"
                for shard, count in zip(self.records.shards, self.records.counts, strict=True)
            ]
        )


class JsonLines:
    """One prompt on each line of JSON files, with its responses.

        {"messages": "…", "responses": ["…", "…"], "images": ["a.png"]}

    ``messages`` is a text of the user's, or turns as in a record whose parts may hold a ``path``;
    ``response`` may stand for a list of one. ``images`` and ``videos`` are paths, relative to the file, or
    URLs. ``id`` and ``domain`` may name the line. Blank lines count as none.

    Args:
        paths: the files.
        allow_urls: whether media may be fetched from URLs.

    Raises:
        InputError: a file cannot be read, or all are empty.
    """

    def __init__(self, paths: Sequence[str], *, allow_urls: bool = False) -> None:
        self.paths = [Path(path).expanduser() for path in paths]
        self.allow_urls = allow_urls
        starts = [_starts(path) for path in self.paths]
        self.starts = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
        self.ends = np.cumsum([len(one) for one in starts])
        if not len(self.starts):
            raise InputError(f"{', '.join(map(str, self.paths))}: no lines; write one JSON object per line")

    def __len__(self) -> int:
        return len(self.starts)

    def candidates(self, index: int) -> Candidates:
        """Return the responses of a line; raises ``InputError`` if it is not valid."""
        file, line = self.place(index)
        path = Path(file)
        with path.open("rb") as lines:
            lines.seek(int(self.starts[index]))
            data = lines.readline()
        place = Place(file, line)
        raw = load_json(data, place, FIELDS)
        key = check_text(raw.get("id", line), "id", place)
        if ("response" in raw) == ("responses" in raw):
            raise place.error("responses", "give either responses, a list, or response, a text")
        return given_candidates(
            require(raw, "messages", "messages", place),
            raw["responses"] if "responses" in raw else [raw["response"]],
            images=raw.get("images"),
            videos=raw.get("videos"),
            shard=file,
            key=key,
            domain=check_text(raw.get("domain", UNKNOWN), "domain", place),
            folder=path.parent,
            allow_urls=self.allow_urls,
        )

    def place(self, index: int) -> tuple[str, str]:
        """Return the file, and which of its lines with something in it, from 1 on."""
        file = int(np.searchsorted(self.ends, index, side="right"))
        first = int(self.ends[file - 1]) if file else 0
        return str(self.paths[file]), f"line {index - first + 1}"

    @property
    def fingerprint(self) -> str:
        """Of where the lines begin in each file, by its name."""
        return _digest([*map(str, self.paths), blake2b(self.starts.tobytes()).hexdigest()])


def open_candidates(
    given: str | Sequence[str], *, kind: Kind = Kind.PREFERENCE, allow_urls: bool = False
) -> CandidateSource:
    """What a user names: JSON files, told by their ending, or shards.

    Raises:
        InputError: both are named, or what is named cannot be read.
    """
    named = [given] if isinstance(given, str) else list(given)
    lines = [name for name in named if name.endswith(JSON_LINES)]
    if not lines:
        return ShardCandidates(named, kind=kind)
    if len(lines) < len(named):
        raise InputError(
            f"data.predict mixes {JSON_LINES} files with shards: score them in two runs, each into its folder"
        )
    return JsonLines(lines, allow_urls=allow_urls)


def _starts(path: Path) -> np.ndarray:
    """Offsets of the lines of a file that are not blank."""
    starts, offset = [], 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    starts.append(offset)
                offset += len(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a {JSON_LINES} file") from error
    return np.array(starts, dtype=np.int64)


def _digest(parts: Sequence[str]) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
