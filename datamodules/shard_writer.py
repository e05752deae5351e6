# SPDX-License-Identifier: Apache-2.0
"""Writing of WebDataset shards: the same samples give the same bytes, and a folder that exists is complete.

FOLDER/shard-000000.tar           <key>.json, then <key>.<file> of every medium
FOLDER/shard-000000.index.jsonl   offset and size of every member, see ``index``
FOLDER/manifest.json              kind and counts, see ``manifest``
FOLDER/manifest-<SHA>.safetensors samples, bytes and SHA-256 of every shard
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from webdataset import TarWriter

from ixc_lightning.datamodules.index import Header, write_index
from ixc_lightning.datamodules.manifest import Manifest
from ixc_lightning.datamodules.records import Kind, parse_record
from ixc_lightning.types import InputError

MAX_SHARD_BYTES = 1_000_000_000
"""A shard is closed once it holds so much, even if it has fewer samples than asked for."""
KEY = re.compile(r"(?!__)[^./\s]+(/[^./\s]+)*")
FILE = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class Sample(NamedTuple):
    """What becomes one sample of a shard.

    Attributes:
        key: WebDataset key, without dots, unique within the folder.
        record: the record as JSON, see ``records``.
        media: bytes of the media, by the file name that the record gives them, in lower case.
    """

    key: str
    record: Mapping[str, Any]
    media: Mapping[str, bytes] = {}


def write_shards(
    samples: Iterable[Sample], folder: Path, *, kind: Kind | str, samples_per_shard: int = 1000
) -> Manifest:
    """Write samples to a new folder of shards, and return what it holds.

    The folder appears under its name only when it is complete. Times, owners and the order of members and
    JSON fields are fixed, so the same samples give the same bytes.

    Args:
        samples: the samples, in the order in which they are written; each is validated.
        folder: the folder to make; it must not exist or be empty.
        kind: kind of record.
        samples_per_shard: how many samples a shard holds at most.

    Raises:
        InputError: naming the sample and its field, if one is not valid; or if the folder is not empty.
        ValueError: if ``samples_per_shard`` is not positive.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be positive, not {samples_per_shard}")
    headers: dict[str, Header] = {}
    rest = _checked(samples, folder, Kind(kind))
    with new_folder(folder) as partial:
        for first in rest:
            path = partial / f"shard-{len(headers):06d}.tar"
            _write_shard(path, chain([first], rest), samples_per_shard)
            headers[path.name] = write_index(path)
        manifest = Manifest.of(Kind(kind), headers)
        manifest.save(partial)
    return manifest


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill; it takes the name ``folder`` when the block ends, and goes if the block raises.

    Raises:
        InputError: if ``folder`` exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty; name a new folder, or delete this one")
    partial = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _checked(samples: Iterable[Sample], folder: Path, kind: Kind) -> Iterator[tuple[Sample, bytes]]:
    """Give every sample with its JSON, once it is known that it can be read back."""
    keys = set()
    for sample in samples:
        if not KEY.fullmatch(sample.key):
            raise InputError(
                f"{folder}, sample {sample.key!r}: a key has no dots, spaces or leading '__'; rename it"
            )
        if sample.key in keys:
            raise InputError(
                f"{folder}, sample {sample.key!r}: the key comes twice; give every sample a key of its own"
            )
        keys.add(sample.key)
        for name in sample.media:
            if not FILE.fullmatch(name) or name == "json":
                problem = "a file name has lower-case letters, digits, '.', '_' and '-' only"
                raise InputError(f"{folder}, sample {sample.key!r}, {name!r}: {problem}; rename it")
        data = json.dumps(sample.record, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        parse_record(data, sample.media, kind=kind, shard=str(folder), key=sample.key)
        yield sample, data


def _write_shard(path: Path, samples: Iterator[tuple[Sample, bytes]], count: int) -> None:
    with path.open("wb") as stream, TarWriter(stream, encoder=False, user="", group="", mtime=0) as writer:
        size = 0
        for number, (sample, data) in enumerate(samples, start=1):
            # The writer sorts the fields of a call: two calls put the JSON first.
            size += writer.write({"__key__": sample.key, "json": data})
            size += writer.write({"__key__": sample.key, **sample.media})
            if number >= count or size >= MAX_SHARD_BYTES:
                return
