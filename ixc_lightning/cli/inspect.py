# SPDX-License-Identifier: Apache-2.0
"""The command that shows what shards hold: tables for the terminal, and a page of records for a browser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from ixc_lightning.datamodules.inspection import Inspection, Spread, inspect_records, open_any
from ixc_lightning.datamodules.inspection_page import render_page, spread_out
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.remote import shown
from ixc_lightning.types import InputError

MAX_ROWS = 12
"""Domains and sources that a table names; the others are counted together."""


def inspect(
    shards: str,
    processor: str | None = None,
    html: str | None = None,
    records: int = 24,
    video_frames: int = 8,
) -> None:
    """Show what shards hold: counts, lengths, repetitions, sizes of media, and what is broken.

    Args:
        shards: a tar, a folder with tars, or a pattern such as data/shard-{000000..000009}.tar; or the
            address of one, such as s3://bucket/train, which is fetched to the cache in the home directory.
        processor: hub id or folder of a model's processor: count tokens, too; every picture is decoded.
        html: file for a page of records with their pictures, to open in a browser.
        records: how many records the page shows, evenly from the first to the last.
        video_frames: frames of each video for which tokens are counted.

    Raises:
        InputError: the shards cannot be opened, none of the first records is sound, or the page cannot be
            written.
    """
    if records < 1:
        raise InputError(f"--records is {records}, but the page shows at least 1")
    dataset, damage = open_any(shards)
    encoder = ChatEncoder(processor, video_frames=video_frames) if processor else None
    errors = Console(stderr=True)
    numbers = track(
        range(len(dataset)), "reading", console=errors, transient=True, disable=not errors.is_terminal
    )
    inspection = inspect_records(dataset, numbers, encoder=encoder)
    for bad in damage:
        inspection.add_broken(bad)
    console = Console(highlight=False)
    for table in tables(inspection):
        console.print(table)
    if html is not None:
        chosen = spread_out(records, len(dataset))
        _write(
            Path(html).expanduser(),
            render_page(dataset, chosen, title=f"{len(chosen)} records of {shown(shards)}"),
        )
        console.print(f"{escape(html)}: {len(chosen)} records", soft_wrap=True)


def tables(inspection: Inspection) -> Iterator[Table | str]:
    """Give what to print, in the order in which to print it."""
    size = f"{inspection.bytes / 1e6:,.1f} MB"
    shards = f"{inspection.shards:,} shard{'s' if inspection.shards > 1 else ''}"
    yield (
        f"{inspection.samples:,} {inspection.kind} records in {shards}, {size}; "
        f"{inspection.broken.total():,} broken"
    )
    for name, counts in (
        ("modality", inspection.modalities),
        ("domain", inspection.domains),
        ("source", inspection.sources),
    ):
        yield _counts(name, counts)
    yield _spreads(inspection.spreads())
    yield _findings(inspection)
    if inspection.broken:
        yield _counts("what is broken", inspection.broken)
        for example in list(inspection.examples.values())[:MAX_ROWS]:
            yield f"for example {_label(example)}"


def _counts(name: str, counts: Mapping[str, int]) -> Table:
    table = Table(Column(name, overflow="fold"), *_numbers("records", "share"), box=SIMPLE)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[MAX_ROWS:])
    rows = [(_label(label), count) for label, count in ranked[:MAX_ROWS]]
    if rest:
        rows.append((f"… {len(ranked) - MAX_ROWS:,} more", rest))
    for label, count in rows:
        table.add_row(label, f"{count:,}", f"{count / total:.1%}")
    return table


def _spreads(spreads: Mapping[str, Spread]) -> Table:
    table = Table("length or size", *_numbers("least", "median", "90 %", "most"), box=SIMPLE)
    for name, spread in spreads.items():
        table.add_row(name, *map(_short, spread))
    return table


def _findings(inspection: Inspection) -> Table:
    """A table of what occurred before, and of pairs whose chosen response is the longer one."""
    table = Table("finding", *_numbers("number", "share"), box=SIMPLE)
    records = inspection.modalities.total()
    totals = {"media": sum(len(inspection.values.get(f"{kind}, kB", ())) for kind in ("image", "video"))}
    for name, count in inspection.repeats.items():
        table.add_row(
            f"{name} that occurred before", f"{count:,}", f"{count / totals.get(name, records):.1%}"
        )
    if inspection.kind is Kind.PREFERENCE and records:
        table.add_row(
            "chosen longer than rejected", f"{inspection.longer:,}", f"{inspection.longer / records:.1%}"
        )
    return table


def _label(text: str) -> str:
    """Text of a record as a terminal may show it: without markup and control characters."""
    return escape("".join(letter if letter.isprintable() else "�" for letter in text))


def _numbers(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.2f}"


def _write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another file") from None
