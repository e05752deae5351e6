# SPDX-License-Identifier: Apache-2.0
"""Remote shards on the local disk: fetched once per machine, whole, and the longest unused removed for room.

    FOLDER/<hash of the remote folder>/shard-000000.tar    with its sidecar and manifest beside it, if fetched

All processes that name the folder share it; files with a dot in front are locks and what is being fetched.
The disk must be one of this machine: locks are those of ``flock``.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout
from fsspec.callbacks import Callback

from ixc_lightning.datamodules.index import index_path
from ixc_lightning.datamodules.remote import ATTEMPTS, StoreInputError, retry, shown
from ixc_lightning.types import InputError

FOLDER = "~/.cache/ixc_lightning/shards"
MAX_BYTES = 100_000_000_000
SMALL = 1000
"""A file below this fraction of the cache, such as a sidecar, is not worth a count of all files …"""
RECOUNT_S = 5.0
"""… more often than after so many seconds."""
log = logging.getLogger(__name__)


class ShardCache:
    """Local copies of remote files, shared by all processes of a machine.

    A file is fetched by one process while the others wait, to another name, and renamed when it is whole. A
    file that was fetched is not asked for again: remote files are taken not to change under their name, and
    where a checksum is given, one that did is fetched anew.

    To make room, the files that were not fetched or opened for the longest go first, but never one that is
    being fetched or that ``open`` has open in any process. What was opened by its path instead can lose its
    name, yet stays readable until it is closed, as POSIX has it, so open it anew by ``fetch`` or ``open``. If
    all files are in use, the cache grows beyond its size and says so.

    Args:
        folder: where the files are kept; ``~`` is the home directory.
        max_bytes: bytes that all of them may take together.
        attempts: how often a file is asked for, with growing waits, while server or network fail.

    Raises:
        InputError: a size that is not positive, or a folder that cannot be made.
    """

    def __init__(
        self, folder: str | Path = FOLDER, max_bytes: int = MAX_BYTES, *, attempts: int = ATTEMPTS
    ) -> None:
        if max_bytes < 1 or attempts < 1:
            raise InputError(f"ShardCache: max_bytes={max_bytes} and attempts={attempts} must be positive")
        self.folder = Path(folder).expanduser().absolute()
        self.max_bytes = max_bytes
        self.attempts = attempts
        self._counted_at = -RECOUNT_S
        self._wanted: deque[str] = deque()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: the cache cannot be made there ({error.strerror}); name another folder"
            ) from None

    def fetch(self, url: str, sha256: str | None = None) -> Path:
        """Return the path of the local copy of a file, fetched if it is not there.

        Args:
            url: any URL that ``fsspec`` reads.
            sha256: checksum in hexadecimal, where it is known.

        Raises:
            InputError: naming the file: there is none, no access, no driver, a server or network that keeps
                failing, another checksum, a full disk, or it is larger than the cache.
        """
        path = self.path(url)
        with self._lock(path):
            self._fetch(url, path, sha256)
        return path

    def open(self, url: str, sha256: str | None = None) -> BinaryIO:
        """Return the local copy, fetched as ``fetch`` does, open; it stays there until it is closed."""
        path = self.path(url)
        if stream := _open_if_there(path, sha256):
            return stream
        with self._lock(path):
            self._fetch(url, path, sha256)
            stream = path.open("rb", buffering=0)
            fcntl.flock(stream, fcntl.LOCK_SH)
        return stream

    def forget(self, url: str) -> None:
        """Remove the local copy of a file, so that it is fetched anew."""
        path = self.path(url)
        with self._lock(path):
            path.unlink(missing_ok=True)

    def prefetch(self, urls: Iterable[str]) -> None:
        """Fetch files in the background, one after the other, in this order; what is there stays longer.

        What an earlier call named and was not begun is given up, and what another process is fetching is left
        to it. Name no more than the cache holds beside the files in use. What fails is left to ``fetch``,
        which says why.
        """
        self._wanted = deque(url for url in urls if not _touch(self.path(url)))
        if self._wanted:
            # A thread for each call: it ends when its files do, and nothing has to survive a fork.
            Thread(target=self._work, args=(self._wanted,), name="prefetch", daemon=True).start()

    def path(self, url: str) -> Path:
        """Return where the local copy of a file lies if it is there; a remote folder's files lie together."""
        scheme, host, path, query, _ = urlsplit(url, allow_fragments=False)
        folder, _, name = path.rpartition("/")
        if not name or name in (".", ".."):
            raise InputError(f"{shown(url)}: names no file; give the address of a tar")
        group = hashlib.sha256(repr((scheme, host, folder, query)).encode()).hexdigest()[:16]
        return self.folder / group / name

    def _work(self, wanted: deque[str]) -> None:
        while wanted and wanted is self._wanted:
            with suppress(InputError, OSError, IndexError, Timeout):
                url = wanted.popleft()
                path = self.path(url)
                with self._lock(path, timeout=0.0):
                    self._fetch(url, path, None)

    def _fetch(self, url: str, path: Path, sha256: str | None) -> None:
        """Make the local copy be there; the caller holds its lock."""
        if path.exists() and (sha256 is None or _read(_hidden(path, "sha256")) == sha256):
            os.utime(path)
            return
        path.unlink(missing_ok=True)
        try:
            found = retry(url, lambda files, name: self._download(files, name, path), attempts=self.attempts)
            if sha256 is not None and found != sha256:
                problem = f"its SHA-256 is {found}, but the manifest says {sha256}; it was changed or damaged"
                raise InputError(
                    f"{shown(url)}: {problem}. Upload the shard again, or write the manifest anew"
                )
            _hidden(path, "partial").replace(path)
        finally:
            _discard(path)

    def _download(self, filesystem: Any, name: str, path: Path) -> str:
        """Write the file beside ``path``, and return its checksum, which is written, too."""
        partial = _hidden(path, "partial")
        size = _OnSize(lambda size: self._make_room(path, size))
        filesystem.get_file(name, str(partial), callback=size)
        found = partial.stat().st_size
        if size.size is None:  # the server did not tell
            self._make_room(path, found)
        elif found < size.size:
            raise OSError(f"cut off after {found:,} of {size.size:,} bytes")
        with partial.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        _hidden(path, "sha256").write_text(sha256)
        return sha256

    def _make_room(self, path: Path, size: int) -> None:
        """Remove files until ``size`` more bytes fit, and reserve these for ``path``."""
        if size > self.max_bytes:
            problem = f"{path.name} has {size:,} bytes, more than max_bytes={self.max_bytes:,} of the cache"
            raise StoreInputError(f"{problem}; raise it, or write smaller shards")
        if size * SMALL < self.max_bytes and time.monotonic() - self._counted_at < RECOUNT_S:
            return
        with FileLock(self.folder / ".room.lock"):
            for begun in (*self.folder.glob("*/.*.partial"), *self.folder.glob("*/.*.room")):
                self._sweep(begun, path)
            own = _hidden(path, "room")  # of an attempt before
            taken = sum(_size(room) for room in self.folder.glob("*/.*.room") if room != own)
            files = [(stat, file) for file in self.folder.glob("*/[!.]*") if (stat := _stat(file))]
            taken += sum(stat.st_size for stat, _ in files)
            for stat, file in sorted(files, key=lambda item: item[0].st_mtime_ns):
                if taken + size <= self.max_bytes:
                    break
                if file != path and self._evict(file):
                    taken -= stat.st_size
            if taken + size > self.max_bytes:
                log.warning(
                    "%s: all files are in use, so the cache grows beyond max_bytes=%s",
                    self.folder,
                    f"{self.max_bytes:,}",
                )
            # A file without blocks: other processes count its size while the download grows.
            with own.open("wb") as room:
                room.truncate(size)
        self._counted_at = time.monotonic()

    def _evict(self, file: Path) -> bool:
        """Remove a file unless it is in use, and return whether it is gone."""
        with suppress(Timeout, BlockingIOError, FileNotFoundError), self._lock(file, timeout=0.0):
            with file.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _hidden(file, "sha256").unlink(missing_ok=True)
                file.unlink()
            return True
        return False

    def _sweep(self, begun: Path, own: Path) -> None:
        """Remove what a process that was killed has begun to fetch."""
        file = begun.with_name(begun.name.removeprefix(".").rpartition(".")[0])
        if file != own:
            with suppress(Timeout), self._lock(file, timeout=0.0):
                _discard(file)

    @contextmanager
    def _lock(self, path: Path, timeout: float = -1.0) -> Iterator[None]:
        path.parent.mkdir(exist_ok=True)
        with FileLock(_hidden(path, "lock"), timeout=timeout):
            yield


def index_url(url: str) -> str:
    """Return the URL of the sidecar of a remote shard."""
    scheme, host, path, query, _ = urlsplit(url, allow_fragments=False)
    return urlunsplit((scheme, host, str(index_path(Path(path))), query, ""))


class _OnSize(Callback):
    """Calls a function with the size of a file as soon as the server tells it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        if size is not None:
            self.function(size)


def _open_if_there(path: Path, sha256: str | None) -> BinaryIO | None:
    """Return a local copy open, without the lock of its name, which takes longer than a read."""
    try:
        stream = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_wanted = sha256 is None or _hidden(path, "sha256").read_text() == sha256
        # It may have been removed before it was locked; from here on it stays.
        if is_wanted and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            os.utime(path)
            return stream
    stream.close()
    return None


def _touch(path: Path) -> bool:
    """Note that a file is in use, and return whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _discard(path: Path) -> None:
    for suffix in ("partial", "room"):
        _hidden(path, suffix).unlink(missing_ok=True)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process removed it
        return None


def _size(path: Path) -> int:
    stat = _stat(path)
    return stat.st_size if stat else 0
