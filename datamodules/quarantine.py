# SPDX-License-Identifier: Apache-2.0
"""What becomes of a sample that cannot be used: it stops the run, or it is left out, listed and counted.

The list is one file of JSON lines per rank, ``bad-samples-00000.jsonl`` and so on, each line with ``key``,
``shard``, ``reason`` and ``position``. Lines up to the position of a checkpoint belong to it, whichever rank
wrote them, so a run can be resumed on another number of ranks.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ixc_lightning.types import InputError

FILE = "bad-samples-{rank:05d}.jsonl"
FILES = "bad-samples-*.jsonl"
MAX_CAUSES = 50
"""Causes that are counted apart; all further ones are counted together."""
OTHER = "something else"
SHOWN_CAUSES = 5
"""Causes that a summary names."""


class Policy(StrEnum):
    """What a sample that cannot be used does to the run."""

    RAISE = "raise"
    QUARANTINE = "quarantine"


class BadSample(NamedTuple):
    """A sample that cannot be used, and why.

    Attributes:
        key: WebDataset key; empty where a shard is damaged and nobody can say which samples it held.
        shard: path of the tar.
        reason: the message of the error that it would raise; names shard, key and field.
    """

    key: str
    shard: str
    reason: str

    @property
    def cause(self) -> str:
        """The reason without what differs from sample to sample, to count by."""
        text = self.reason.replace(self.shard, "").replace(f"sample {self.key!r}", "")
        text = text.removeprefix(f":{self.key}")
        text = re.split(r"[;(]|\. ", text.lstrip(" ,:."))[0]
        text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
        return re.sub(r"\d+(?:[.,]\d+)*", "#", text).strip()[:120] or OTHER


class Quarantine:
    """Takes the bad samples that one rank meets, and knows when they are too many.

    Args:
        policy: ``raise`` ends the run at the first bad sample; ``quarantine`` goes on without it.
        folder: where the lists are written. A new run removes those that it finds, a resumed one goes on
            with them.
        max_fraction: the run ends once more than this share of the samples was bad.
        min_seen: samples that this rank must have seen before the share counts.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        InputError: naming the setting, if it is out of its range.

    Attributes:
        counts: bad samples that this rank has met since it started, by cause.
        num_seen: samples that this rank has seen, before a resume its share of them.
        position: place in the global order right behind the last step.
    """

    def __init__(
        self,
        policy: Policy | str,
        folder: str | Path,
        *,
        max_fraction: float = 0.01,
        min_seen: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if policy not in list(Policy):
            raise InputError(f"on_bad_sample is {policy!r}; use one of {', '.join(Policy)}")
        if not 0 <= max_fraction <= 1:
            raise InputError(f"max_fraction of bad samples is {max_fraction}; it lies between 0 and 1")
        self.policy = Policy(policy)
        self.folder = Path(folder).expanduser()
        self.max_fraction = max_fraction
        self.min_seen = min_seen
        self.rank = rank
        self.world_size = world_size
        self.counts: Counter[str] = Counter()
        self.num_seen = 0
        self.position = 0
        self._earlier: Counter[str] = Counter()
        self._is_ready = False

    @property
    def num_bad(self) -> int:
        """Bad samples of this rank, with its share of those before a resume; the ranks' sum is exact."""
        share, rest = divmod(self._earlier.total(), self.world_size)
        return self.counts.total() + share + (self.rank < rest)

    def add(self, bad: BadSample, position: int) -> None:
        """Take a bad sample that the run has come to.

        Args:
            bad: the sample.
            position: place in the global order right behind the step that it was met in, in samples over all
                ranks and epochs.

        Raises:
            InputError: the sample's own reason, if the policy is ``raise``.
        """
        if self.policy is Policy.RAISE:
            raise InputError(bad.reason)
        self._prepare()
        _count(self.counts, bad)
        line = json.dumps({**bad._asdict(), "position": position}).encode() + b"\n"
        # One write to the end, so that a run that is killed leaves whole lines.
        path = self.folder / FILE.format(rank=self.rank)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def seen(self, count: int, position: int) -> None:
        """Note that this rank has come by samples, good or bad, once the bad ones among them were added.

        Args:
            count: number of samples.
            position: place in the global order right behind the step, as for ``add``.

        Raises:
            InputError: too many samples of this rank were bad.
        """
        self._prepare()
        self.num_seen += count
        self.position = position
        if self.num_seen >= self.min_seen and self.num_bad > self.max_fraction * self.num_seen:
            raise InputError(
                f"{self.folder}: {self.num_bad:,} of {self.num_seen:,} samples of rank {self.rank} cannot be "
                f"used, more than the limit of {self.max_fraction:g}; most often: "
                f"{_causes(self.counts + self._earlier, 1)}. "
                "The lists there name each: mend the data, or raise the limit"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs; that of one rank serves all."""
        counts = self._listed(until=self.position) or self._earlier + self.counts
        return {
            "position": self.position,
            "seen": self.num_seen * self.world_size,
            "counts": dict(counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: what was listed after it leaves the lists, and will be met again.

        Where the lists are gone, the counts of the state go on.
        """
        self.position = state["position"]
        self.num_seen = state["seen"] // self.world_size
        self.counts.clear()
        self._earlier = Counter(state["counts"])
        self._is_ready = False
        self._prepare()

    def summary(self) -> str:
        """Return a paragraph for the end of a run, over the lists of all ranks that lie in the folder."""
        counts = self._listed() or self._earlier + self.counts
        total = self.num_seen * self.world_size
        if not counts:
            return f"Each of the {total:,} samples could be used."
        share = 100 * counts.total() / max(total, 1)
        return (
            f"{counts.total():,} of {total:,} samples ({share:.2g} %) could not be used and were left out: "
            f"{_causes(counts)}. {self.folder / FILES} names each with its reason."
        )

    def _prepare(self) -> None:
        """Once, count what the lists hold up to ``position``, and cut those of this rank's share to it.

        The ranks do this at their own times; what one reads before or after another has cut it is the same.
        """
        if self._is_ready or self.policy is Policy.RAISE:
            return
        self._is_ready = True
        self.folder.mkdir(parents=True, exist_ok=True)
        self._earlier = self._listed(until=self.position) or self._earlier
        for path in self.folder.glob(FILES):
            if int(path.stem.rpartition("-")[2]) % self.world_size != self.rank:
                continue
            kept = b"".join(line for _, position, line in _read(path) if position <= self.position)
            if not kept:
                path.unlink()
            elif len(kept) < path.stat().st_size:
                temporary = path.with_suffix(".partial")
                temporary.write_bytes(kept)
                temporary.replace(path)

    def _listed(self, until: int | None = None) -> Counter[str]:
        """Count the lines of all lists by cause, those that are not beyond a position if one is given."""
        counts: Counter[str] = Counter()
        for path in self.folder.glob(FILES):
            for bad, position, _ in _read(path):
                if until is None or position <= until:
                    _count(counts, bad)
        return counts


def _read(path: Path) -> Iterator[tuple[BadSample, int, bytes]]:
    """Give the lines of a list; one that a killed run left half written is none."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:  # the rank that looks after it was quicker
        return
    for line in lines:
        try:
            fields = json.loads(line)
            position = int(fields.pop("position"))
            yield BadSample(**fields), position, line
        except (ValueError, TypeError, KeyError, AttributeError):
            continue


def _count(counts: Counter[str], bad: BadSample) -> None:
    cause = bad.cause
    counts[cause if cause in counts or len(counts) < MAX_CAUSES else OTHER] += 1


def _causes(counts: Counter[str], number: int = SHOWN_CAUSES) -> str:
    shown = counts.most_common(number)
    rest = counts.total() - sum(count for _, count in shown)
    named = [f"{cause} ({count:,} times)" for cause, count in shown]
    return ", ".join([*named, f"{OTHER} ({rest:,} times)"] if rest else named)
