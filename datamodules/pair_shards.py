# SPDX-License-Identifier: Apache-2.0
"""Preference shards of responses that were made and judged, and where each of them comes from.

FOLDER/preference/         shards, their indices and a manifest: what training reads
FOLDER/provenance.jsonl    a line for each pair, in the order of the shards
FOLDER/report.json         who answered and judged, how, and the counts of everything
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ixc_lightning.datamodules.records import Kind, parse_record
from ixc_lightning.datamodules.shard_writer import Sample, new_folder, write_shards
from ixc_lightning.types import InputError

SHARDS, PROVENANCE, REPORT = "preference", "provenance.jsonl", "report.json"
SIDES = ("chosen", "rejected")
NO_RECORD = "a response cannot stand in a record"
"""It is empty but for spaces, say, or holds what stands for a picture."""


def write_pairs(
    folder: Path,
    made: Iterable[Mapping[str, Any]],
    prompt: Callable[[int], Sample],
    *,
    summary: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Write the pairs of all prompts, and return the report; everything appears at once.

    Args:
        folder: takes the place of what is there, once it is complete.
        made: of each prompt, in order, its ``row``, ``key``, ``seed``, ``candidates``, ``counts``,
            ``left_out``, and ``pairs``: the numbers of the ``chosen`` and of the ``rejected`` candidate, and
            what else is known about the pair.
        prompt: gives the prompt of a row as a sample, its media included.
        summary: says, when all is judged, who answered and judged, for the report.

    Raises:
        InputError: naming the record, if one has become unreadable.
    """
    counts: Counter[str] = Counter({"prompts": 0, "prompts with a pair": 0})
    left_out: Counter[str] = Counter()
    waiting = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(waiting, ignore_errors=True)  # left by a run that was killed
    with new_folder(waiting) as partial:
        with (partial / PROVENANCE).open("w", encoding="utf-8") as lines:
            samples = _samples(made, prompt, lines, counts, left_out)
            manifest = write_shards(samples, partial / SHARDS, kind=Kind.PREFERENCE)
        report = {
            **summary(),
            "counts": {**counts, "pairs": manifest.samples},
            "left_out": dict(left_out),
            "modalities": manifest.modalities,
            "domains": manifest.domains,
        }
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (partial / REPORT).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    waiting.rename(folder)
    return report


def _samples(
    made: Iterable[Mapping[str, Any]],
    prompt: Callable[[int], Sample],
    lines: IO[str],
    counts: Counter[str],
    left_out: Counter[str],
) -> Iterator[Sample]:
    """The samples of all pairs, each with its line of provenance; counts what there is to count."""
    number = 0
    for entry in made:
        counts.update(entry["counts"])
        left_out.update(entry["left_out"])
        before = number
        for pair in entry["pairs"]:
            sides = {side: entry["candidates"][pair[side]] for side in SIDES}
            key = f"{number:08d}"
            sample = _sample(key, prompt(entry["row"]), {s: one["response"] for s, one in sides.items()})
            if sample is None:
                left_out[NO_RECORD] += 1
                continue
            told = {"key": key, "prompt": entry["key"], "seed": entry["seed"], **pair, **sides}
            lines.write(json.dumps(told, ensure_ascii=False) + "\n")
            yield sample
            number += 1
        counts["prompts"] += 1
        counts["prompts with a pair"] += number > before


def _sample(key: str, prompt: Sample, texts: Mapping[str, str]) -> Sample | None:
    """The sample of a pair, or None where the contract of records forbids one of its responses."""
    raw = prompt.record
    kept = {name: raw[name] for name in ("id", "source", "domain", "answer") if name in raw}
    # Lists of parts everywhere, so that all records of a shard have one shape.
    turns = [_turn(turn["role"], turn["content"]) for turn in raw["messages"]]
    record = {**kept, "messages": turns, **{side: [_turn("assistant", text)] for side, text in texts.items()}}
    try:
        parse_record(
            json.dumps(record).encode(), prompt.media, kind=Kind.PREFERENCE, shard=prompt.key, key=key
        )
    except InputError:
        return None
    return Sample(key, record, prompt.media)


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "text", "text": content}] if isinstance(content, str) else content,
    }
