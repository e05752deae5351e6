# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of shards come from: the disk, or the cache of what lies at an address."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, NamedTuple, TypeVar

from ixc_lightning.datamodules.cache import ShardCache, index_url
from ixc_lightning.datamodules.folders import Folders
from ixc_lightning.datamodules.index import (
    Entry,
    Header,
    OnDamage,
    index_path,
    read_entries,
    read_header,
    read_sidecar,
    scan_shard,
)
from ixc_lightning.datamodules.quarantine import BadSample
from ixc_lightning.datamodules.remote import UNAVAILABLE, StoreInputError, shown
from ixc_lightning.datamodules.shard_table import ShardRow
from ixc_lightning.types import InputError

S = TypeVar("S", Path, str)


class Survey(NamedTuple):
    """What is known of a shard without its records.

    Attributes:
        samples: number of its samples.
        bytes: size of the tar.
        sha256: checksum of the tar in hexadecimal; empty if nothing says it.
        domains: names of its domains, or of those of its folder.
        entries: its index, where nothing but a scan gave it.
    """

    samples: int
    bytes: int
    sha256: str
    domains: Iterable[str]
    entries: list[Entry] | None = None

    @classmethod
    def of(cls, entries: list[Entry], size: int) -> Survey:
        """Return what a scan of a tar of ``size`` bytes found."""
        return cls(len(entries), size, "", {entry.domain for entry in entries} - {""}, entries)

    @classmethod
    def listed(cls, row: ShardRow, domains: Iterable[str]) -> Survey:
        """Return what a manifest says."""
        return cls(row.samples, row.bytes, row.sha256, domains)

    @classmethod
    def indexed(cls, header: Header) -> Survey:
        """Return what a sidecar says."""
        return cls(header.samples, header.bytes, header.sha256, header.domains)


class ShardFiles(ABC, Generic[S]):
    """Shards of one sort of place. Files stay open until others take their turn."""

    max_open: ClassVar[int]

    def __init__(self) -> None:
        self._streams: OrderedDict[S, BinaryIO] = OrderedDict()
        # A finalizer and no __del__: of objects in a cycle, a stream might be collected before this.
        weakref.finalize(self, _close, self._streams)

    @abstractmethod
    def survey(self, shard: S, folders: Folders, on_damage: OnDamage | None) -> Survey:
        """Return what a shard holds that was named by itself: from manifest or sidecar, else by a scan.

        Args:
            shard: path or URL.
            folders: reads the manifest of its folder.
            on_damage: takes what cannot be read of a damaged shard; without it, damage raises.

        Raises:
            InputError: naming the shard, if it cannot be read.
        """

    @abstractmethod
    def entries(self, shard: S, sha256: str, *, keeps_going: bool) -> list[Entry]:
        """Return the index of a shard.

        Args:
            shard: path or URL.
            sha256: checksum of the tar, where it is known, else empty.
            keeps_going: of a damaged shard, return the sound part.

        Raises:
            InputError: naming the shard, if it cannot be read or is another one.
        """

    @abstractmethod
    def open(self, shard: S, sha256: str) -> BinaryIO:
        """Return the tar, open; raises as ``entries``."""

    def descriptor(self, shard: S, sha256: str) -> int:
        """Return the descriptor of a tar; reads name their offset, so forked processes may share it."""
        if shard not in self._streams:
            while len(self._streams) >= self.max_open:
                self._streams.popitem(last=False)[1].close()
            self._streams[shard] = self.open(shard, sha256)
        self._streams.move_to_end(shard)
        return self._streams[shard].fileno()

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        _close(self._streams)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_streams"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ShardFiles.__init__(self)
        self.__dict__.update(state)


def _close(streams: OrderedDict[S, BinaryIO]) -> None:
    while streams:
        streams.popitem()[1].close()


class LocalFiles(ShardFiles[Path]):
    """Shards on a disk."""

    max_open = 64

    def survey(self, shard: Path, folders: Folders, on_damage: OnDamage | None) -> Survey:
        """Return what a shard holds; one that is not that of its sidecar is scanned, or raises."""
        has_index = index_path(shard).exists()
        if has_index and (row := folders.listed(shard)) and row.bytes == shard.stat().st_size:
            return Survey.listed(row, folders.domains(shard))
        if has_index:
            try:
                return Survey.indexed(read_header(shard))
            except InputError:
                if on_damage is None:
                    raise
        return Survey.of(read_entries(shard, on_damage=on_damage), shard.stat().st_size)

    def entries(self, shard: Path, sha256: str, *, keeps_going: bool) -> list[Entry]:
        """Return the index of a shard, from its sidecar if it has one, which must be that of the tar."""
        if sha256 and index_path(shard).exists():
            known = read_header(shard, on_damage=_ignore if keeps_going else None).sha256
            if known not in ("", sha256):
                problem = "was made from another tar than the one in the manifest"
                raise InputError(
                    f"{index_path(shard)}: {problem}; copy both again, or run `index` on the folder"
                )
        return read_entries(shard, on_damage=_ignore if keeps_going else None)

    def open(self, shard: Path, sha256: str) -> BinaryIO:
        """Return the tar, open."""
        try:
            return shard.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"{shard}: cannot be read ({error.strerror}); was it moved?") from None


def _ignore(_: BadSample) -> None:
    """What is lacking is noticed when a record is asked for."""


class RemoteFiles(ShardFiles[str]):
    """Shards at an address, in a cache on the disk.

    Of a shard that its manifest lists, nothing is asked until its records are; of any other, the sidecar, or
    if there is none, the tar. A tar is compared with the checksum of manifest or sidecar.

    Args:
        cache: keeps the files.
    """

    max_open = 1
    """What is open cannot leave the cache, and opening it again costs little."""

    def __init__(self, cache: ShardCache) -> None:
        super().__init__()
        self.cache = cache
        self._failures: dict[str, str] = {}

    def survey(self, shard: str, folders: Folders, on_damage: OnDamage | None) -> Survey:
        """Return what a shard holds."""
        if row := folders.listed(shard):
            return Survey.listed(row, folders.domains(shard))
        if sidecar := self._sidecar(shard, ""):
            return Survey.indexed(sidecar[0])
        return self._scan(shard, "", on_damage)

    def entries(self, shard: str, sha256: str, *, keeps_going: bool) -> list[Entry]:
        """Return the index of a shard, from its sidecar if it has one."""
        with self._failing_once(shard):
            if sidecar := self._sidecar(shard, sha256):
                return sidecar[1]
            return self._scan(shard, sha256, _ignore if keeps_going else None).entries or []

    def open(self, shard: str, sha256: str) -> BinaryIO:
        """Return the local copy, open."""
        with self._failing_once(shard):
            return self.cache.open(shard, sha256 or None)

    def prefetch(self, shards: Iterable[str]) -> None:
        """Fetch the tars in the background."""
        self.cache.prefetch(shards)

    def _sidecar(self, shard: str, wanted: str) -> tuple[Header, list[Entry]] | None:
        """Return what the sidecar says, or None if there is none; one of another tar is fetched once more."""
        sidecar = index_url(shard)
        for is_last in (False, True):
            try:
                stream = self.cache.open(sidecar)
            except UNAVAILABLE:
                return None
            with stream, self._named(shard):
                header, entries = read_sidecar(self.cache.path(shard))
            if not wanted or header.sha256 in ("", wanted):
                return header, entries
            if not is_last:
                self.cache.forget(sidecar)
        raise InputError(
            f"{shown(sidecar)}: was made from another tar than the one in the manifest; upload both again"
        )

    def _scan(self, shard: str, sha256: str, on_damage: OnDamage | None) -> Survey:
        def report(bad: BadSample) -> None:
            assert on_damage is not None
            on_damage(bad._replace(shard=shown(shard), reason=self._rename(shard, bad.reason)))

        path = self.cache.path(shard)
        with self.cache.open(shard, sha256 or None), self._named(shard):
            return Survey.of(scan_shard(path, on_damage=on_damage and report), path.stat().st_size)

    @contextmanager
    def _failing_once(self, shard: str) -> Iterator[None]:
        """Remember that a shard is bad, so that it is not fetched for each of its records."""
        if shard in self._failures:
            raise InputError(self._failures[shard])
        try:
            yield
        except StoreInputError:  # it may come back
            raise
        except InputError as error:
            self._failures[shard] = str(error)
            raise

    @contextmanager
    def _named(self, shard: str) -> Iterator[None]:
        """Let errors name the address, where they named the local copy."""
        try:
            yield
        except InputError as error:
            raise InputError(self._rename(shard, str(error))) from None

    def _rename(self, shard: str, text: str) -> str:
        path = self.cache.path(shard)
        text = text.replace(str(index_path(path)), shown(index_url(shard)))
        return text.replace(str(path), shown(shard))
