# SPDX-License-Identifier: Apache-2.0
"""The way of every converter: rows in, drafts checked, shards out, and a report of what was left out.

OUT/<layout>/shard-000000.tar …   one folder for each layout of members, see ``_drafts.layout``
OUT/conversion.json               the report
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from rich.console import Console
from rich.progress import track

from ixc_lightning.datamodules.folders import REPORT
from ixc_lightning.datamodules.records import Kind, parse_record
from ixc_lightning.datamodules.shard_writer import Sample, new_folder, write_shards
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, layout, refusal, render
from ixc_lightning.datamodules.sources._files import find_files
from ixc_lightning.datamodules.sources._reading import Row, read_rows
from ixc_lightning.types import InputError

MAX_EXAMPLES = 20
BAD_ROW = "the row is bad"
OnBadRow: TypeAlias = Literal["raise", "drop"]
Drafts: TypeAlias = Callable[[Row], Iterable[Draft]]


class DataSet(NamedTuple):
    """A public data set.

    Attributes:
        name: of the converter; the records' ``source``.
        home: where it is published.
        licence: under which it is published; the user answers for its use.
        required: columns that every row must have.
        optional: further columns that are known, whether they are used or not.
    """

    name: str
    home: str
    licence: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


@dataclass
class Report:
    """What a conversion made of a data set. A row gives one pair, or as many as its ratings allow.

    Attributes:
        name: of the data set, and the ``source`` of its records.
        home: where the data set is published.
        licence: of the data set.
        source: what was read, as the user named it.
        settings: the arguments that decide what is kept.
        rows: number of rows read.
        records: number of records written.
        dropped: number of pairs, or of rows that gave none, by the reason they were left out.
        unknown_fields: columns that the converter does not know, with the place of their first row.
        bad_rows: messages of the first rows that were dropped because they are bad.
        folders: number of records of each folder.
        weights: relative weights for mixing, where the source names them, by folder.
    """

    name: str
    home: str
    licence: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    records: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    unknown_fields: dict[str, str] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.rows:,} rows gave {self.records:,} records"]
        lines += [f"  {folder}: {count:,}" for folder, count in self.folders.items()]
        lines += [f"  left out, {reason}: {count:,}" for reason, count in sorted(self.dropped.items())]
        lines += [f"    {message}" for message in self.bad_rows[:3]]
        lines += [
            f"  unknown column {name!r} ({place})" for name, place in sorted(self.unknown_fields.items())
        ]
        return "\n".join([*lines, f"  licence of the data: {self.licence}"])

    def drop(self, reason: str) -> None:
        """Count something that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def save(self, folder: Path) -> None:
        """Write the report as JSON."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def convert_rows(
    data: DataSet,
    drafts: Drafts,
    source: str,
    out: str,
    *,
    kind: Kind = Kind.PREFERENCE,
    files: Iterable[Path] | None = None,
    settings: dict[str, Any] | None = None,
    weights: dict[str, float] | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Convert a data set, print the report, and return it.

    Drafts wait on the disk, sorted by layout, until all rows are read: memory is bounded, and for a while
    the output takes twice its size. The same rows and arguments give the same bytes.

    Args:
        data: what is known about the data set.
        drafts: gives the drafts of a row; raises ``Dropped`` where it has none.
        source: what to read, see ``_files.find_files``.
        out: folder to write; it must not exist, or be empty.
        kind: kind of record.
        files: the files to read, where ``source`` is not simply them.
        settings: for the report.
        weights: for the report.
        limit: rows to read at most.
        on_bad_row: ``raise`` stops at a row that cannot be used; ``drop`` leaves it out and counts it.

    Raises:
        InputError: naming file, row and field; or if no record is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, but at least one row must be read; raise it or leave it out")
    report = Report(data.name, data.home, data.licence, source, settings or {}, weights=weights or {})
    rows = islice(_rows(files or find_files(source), data), limit)
    with new_folder(Path(out)) as folder:
        spools = Spools(folder / ".spool")
        for row in track(rows, data.name, console=Console(stderr=True), transient=True):
            report.rows += 1
            try:
                _check_columns(row, data, report)
                for draft in _usable(drafts(row), report):
                    name = "/".join(filter(None, [draft.subset, layout(draft)]))
                    spools.add(name, _sample(draft, data.name, kind, report.records, row))
                    report.records += 1
            except Dropped as reason:
                report.drop(str(reason))
            except InputError as error:
                if on_bad_row == "raise":
                    raise
                report.drop(BAD_ROW)
                report.bad_rows += [str(error)] * (len(report.bad_rows) < MAX_EXAMPLES)
        if not report.records:
            raise InputError(f"{source}: no record is left\n{report}")
        for name in spools.names:
            report.folders[name] = write_shards(spools.read(name), folder / name, kind=kind).samples
        spools.close()
        report.save(folder)
    print(report)
    return report


def _rows(files: Iterable[Path], data: DataSet) -> Iterator[Row]:
    for path in files:
        yield from read_rows(path, (*data.required, *data.optional))


def _check_columns(row: Row, data: DataSet, report: Report) -> None:
    for name in data.required:
        row.require(name)
    for name in row.fields.keys() - {*data.required, *data.optional} - report.unknown_fields.keys():
        report.unknown_fields[name] = f"{row.file}, row {row.number}"


def _usable(drafts: Iterable[Draft], report: Report) -> Iterator[Draft]:
    for draft in drafts:
        reason = refusal(draft)
        if reason is None:
            yield draft
        else:
            report.drop(reason)


def _sample(draft: Draft, source: str, kind: Kind, number: int, row: Row) -> Sample:
    """Return the sample of a draft; whatever the record contract forbids is named by the row it is from."""
    record, media = render(draft, source)
    data = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
    parse_record(data, media, kind=kind, shard=row.file, key=f"row {row.number}")
    return Sample(f"{number:08d}", record, media)


class Spools:
    """Samples on disk by name, in the order in which they were added.

    Args:
        folder: where they lie; ``close`` removes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        folder.mkdir()

    def add(self, name: str, sample: Sample) -> None:
        """Put a sample at the end of those of ``name``."""
        if name not in self.names:
            self.names = sorted([*self.names, name])
        sizes = {file: len(data) for file, data in sample.media.items()}
        header = json.dumps([sample.key, sample.record, sizes]).encode() + b"\n"
        with self._path(name).open("ab") as stream:
            stream.writelines([header, *sample.media.values()])

    def read(self, name: str) -> Iterator[Sample]:
        """Give the samples of ``name``, and free their disk space."""
        with self._path(name).open("rb") as stream:
            for header in stream:
                key, record, sizes = json.loads(header)
                yield Sample(key, record, {file: stream.read(size) for file, size in sizes.items()})
        self._path(name).unlink()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / name.replace("/", "+")
