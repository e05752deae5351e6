# SPDX-License-Identifier: Apache-2.0
"""What every benchmark's reader gives: items, and the rule by which files are found."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ixc_lightning.datamodules.sources._drafts import Turn, user
from ixc_lightning.datamodules.sources._files import find_files
from ixc_lightning.datamodules.sources._media import Medium
from ixc_lightning.datamodules.sources._reading import SUFFIXES, Row

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class BenchmarkItem(NamedTuple):
    """One item of a benchmark, without its media.

    Attributes:
        id: as released; several items may share one.
        group: category, in lower case with underscores where the benchmark has words.
        subgroup: finer category, or empty.
        prompt: the turns up to the responses, of text alone.
        chosen: the better responses, one or more.
        rejected: the other ones, one or more.
    """

    id: str
    group: str
    subgroup: str
    prompt: tuple[Turn, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that depend on id, group and all texts, whatever the item's place."""
        turns = [(turn.role, turn.text) for turn in self.prompt]
        texts = json.dumps([self.id, self.group, turns, self.chosen, self.rejected], ensure_ascii=True)
        return blake2b(texts.encode(), digest_size=8).hexdigest()


class BenchmarkReader(ABC):
    """Reads the items of one benchmark, a row each.

    Attributes:
        patterns: names of the benchmark's files in a folder or data set, the best choice first; without
            such files all are read.
        media_fields: fields with pictures or clips, which are read when an item's turn comes.
    """

    patterns: ClassVar[tuple[str, ...]] = ()
    media_fields: tuple[str, ...] = ()

    @abstractmethod
    def item(self, row: Row) -> BenchmarkItem:
        """The item of a row.

        Raises:
            InputError: naming file, row and field, if the row is none of the benchmark.
        """

    def messages(self, item: BenchmarkItem, media: Sequence[Medium]) -> list[Turn]:
        """The prompt with its media, which come before the text of the first turn."""
        first, *rest = item.prompt
        return [Turn(first.role, (*media, *first.parts)), *rest]

    def files(self, path: str) -> list[Path]:
        """The benchmark's files in a file, a folder, a glob pattern or a data set of the hub.

        Raises:
            InputError: nothing is there.
        """
        folder = Path(path).expanduser()
        if folder.is_dir():
            names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            names = [name for name in names if name.endswith(SUFFIXES)]
            for pattern in self.patterns:
                if found := [folder / name for name in names if fnmatch(name, pattern)]:
                    return found
        elif self.patterns and HUB_ID.fullmatch(path) and not folder.exists():
            return list(find_files(f"hf://datasets/{path}/{self.patterns[0]}"))
        return list(find_files(path))


def question(text: str) -> tuple[Turn, ...]:
    """A prompt of one turn."""
    return (user(text),)


def pair_of(row: Row, chosen: str, rejected: str) -> tuple[tuple[str], tuple[str]]:
    """The two responses that lie in fields of these names."""
    return (row.text(chosen),), (row.text(rejected),)


def responses(row: Row, field: str, *, count: int | None = None) -> tuple[str, ...]:
    """The responses that lie in a list.

    Args:
        row: the row.
        field: its field.
        count: how many there must be; at least one if null.

    Raises:
        InputError: naming file, row and field.
    """
    values = row.items(field)
    if not values or not all(isinstance(value, str) for value in values):
        raise row.error(field, "must be a list of texts; download the file again")
    if count is not None and len(values) != count:
        raise row.error(field, f"must hold {count} responses, not {len(values)}; download the file again")
    return tuple(values)


def slug(text: Any) -> str:
    """A name as figures have it: lower case, words joined by underscores."""
    return "_".join(str(text).lower().replace("-", " ").replace("_", " ").split())
