# SPDX-License-Identifier: Apache-2.0
"""The members of a tar that nobody vouches for: in their order, whole, and none twice under one name.

``tarfile`` takes a damaged header, and a cut between two members, for the end of the tar, and follows a size
below zero round in circles. Here both are errors.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
META = re.compile(r"__[^/]*__($|/)")
"""What WebDataset readers skip."""
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAX_EXTENDED = 1 << 16
"""Bytes of a header that holds a long name; ``tarfile`` searches them in quadratic time."""
MAX_NAME = 1024
"""Characters of the name of a member."""
SHOWN = 80
"""Characters of a doubtful name that a message repeats."""
NOT_PRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and what ``tarfile`` makes of bytes that are not UTF-8."""


class DamageError(Exception):
    """From here on the tar cannot be read; the message says why, and what to do."""


class _Member(tarfile.TarInfo):
    """A member whose extended header is refused where it would take ``tarfile`` minutes and gigabytes."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:  # the method that the class names for subclasses
        if self.type in EXTENDED and not 0 <= self.size <= MAX_EXTENDED:
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def walk(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Give the members of a tar, each with its key and its field, in their order.

    Raises:
        DamageError: once the place is reached from which nothing can be read.
    """
    total, end = os.fstat(stream.fileno()).st_size, 0
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as tar:
            for member in tar:
                if member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"unexpected end of {member.name[:SHOWN]!a}")
                if member.size < 0 or member.offset_data <= end:
                    raise tarfile.ReadError(f"a size below 0 at {member.name[:SHOWN]!a}")
                end = member.offset_data
                folder, _, name = member.name.rpartition("/")
                stem, dot, field = name.partition(".")
                if stem and dot and not member.isdir() and not META.match(member.name):
                    yield member, f"{folder}/{stem}" if folder else stem, field.lower()
            end = tar.offset
    except OSError:
        raise
    except Exception as error:  # damaged headers make ``tarfile`` raise almost anything
        reason = str(error) if type(error) is tarfile.ReadError else f"{type(error).__name__}: {error}"
        advice = "unpack a .tar.gz with gunzip, or copy the shard again"
        raise DamageError(f"is not an uncompressed tar, or is cut off ({reason}); {advice}") from None
    _check_end(stream, end)


def _check_end(stream: BinaryIO, offset: int) -> None:
    """Refuse what ``tarfile`` takes for the end: a cut between members, a damaged header, a second tar."""
    stream.seek(offset)
    end = stream.read(BLOCK)
    chunks = iter(lambda: stream.read(CHUNK), b"")
    if len(end) < BLOCK:
        raise DamageError("is cut off, the end mark is missing; copy the shard again")
    if end.strip(b"\0") or any(chunk.strip(b"\0") for chunk in chunks):
        problem = f"is damaged at byte {offset}, or is two tars joined with cat"
        raise DamageError(f"{problem}; copy the shard again, or join with tar --concatenate")


def describe_problem(member: tarfile.TarInfo, field: str, others: Collection[str]) -> str:
    """Return what is wrong with a member, beside those of the same sample before it; empty if nothing."""
    name = member.name
    if len(name) > MAX_NAME or NOT_PRINTED.search(name):
        problem = f"is longer than {MAX_NAME} characters, or holds control characters or bytes beyond UTF-8"
        return f"the name of member {name[:SHOWN]!a} {problem}; rename it"
    if name.startswith("/") or ".." in name.split("/"):
        return f"member {name} leads out of the tar; rename it"
    if not member.isreg() or member.issparse():
        return f"member {name} is a link or no plain file; store the file itself (tar --dereference)"
    if field in others:
        return f"member {name} comes twice; give every sample a key of its own"
    return ""
