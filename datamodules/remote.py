# SPDX-License-Identifier: Apache-2.0
"""Requests to any ``fsspec`` URL (``s3://``, ``gs://``, ``hf://``, ``https://``), with clear errors.

Credentials and endpoints are those that the driver of the protocol finds in the environment, for example
``AWS_PROFILE`` and ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard, TypeVar
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.registry import known_implementations

from ixc_lightning.types import InputError

T = TypeVar("T")

ATTEMPTS = 5
"""How often a request is made before a failing server or network ends the run."""
FIRST_WAIT_S = 0.5
"""Wait before the second attempt, in seconds; it doubles with every further one."""
RETRIED_STATUS = (408, 425, 429)
"""HTTP statuses below 500 that may pass; all others below 500 are final."""
NO_ACCESS = (401, 403)
LOGINS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run `gcloud auth application-default login`",
    "hf": "run `hf auth login`",
}
WEB = ("http", "https")
LOGIN_IN_URL = re.compile(r"((?:https?|s?ftp)://)[^/@\s?]*@")
WEB_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\")]+")


# Their names end as that of their base: by it the command line finds the message in a worker's traceback.
class StoreInputError(InputError):
    """A store, the network, or the disk does not do what it should: nothing is known about the data."""


class AccessInputError(StoreInputError):
    """The store says that the file is not for us."""


class MissingInputError(InputError):
    """The store says that there is no such file."""


UNAVAILABLE = (MissingInputError, AccessInputError)
"""What stores say of a file that is not there; those that may not be listed say "no access"."""


def is_remote(shards: str | Path) -> TypeGuard[str]:
    """Whether what a user wrote is a URL; ``Path`` objects never are, because they join the two slashes."""
    return isinstance(shards, str) and "://" in shards


def shown(name: str | Path) -> str:
    """Return a path or a URL, or a text with URLs, for people: without passwords, and queries as ``?…``.

    The query of a web address may be a signature that gives access to whoever knows it.
    """
    return WEB_QUERY.sub(r"\1?…", LOGIN_IN_URL.sub(r"\1…@", str(name)))


def join_url(folder: str, name: str) -> str:
    """Return the URL of a file in a remote folder; a query stays behind it."""
    head, mark, query = folder.partition("?") if urlsplit(folder).scheme in WEB else (folder, "", "")
    return f"{head.rstrip('/')}/{name}{mark}{query}"


def split_url(url: str) -> tuple[str, str]:
    """Return the URL of a remote file's folder, and the name of the file: undoes ``join_url``."""
    scheme, host, path, query, _ = urlsplit(url, allow_fragments=False)
    folder, _, name = path.rpartition("/")
    return urlunsplit((scheme, host, folder, query, "")), name


def read_remote(url: str) -> bytes | None:
    """Return what a small remote file holds, or None if there is none, or no access to it.

    Raises:
        InputError: naming the URL, as ``retry``.
    """
    try:
        return retry(url, lambda filesystem, path: filesystem.cat_file(path))
    except UNAVAILABLE:
        return None


def retry(url: str, request: Callable[[Any, str], T], *, attempts: int = ATTEMPTS) -> T:
    """Return what a request gives, made again after a growing wait while server or network fail.

    Args:
        url: what is asked for.
        request: called with the ``fsspec`` file system of the URL and the path on it.
        attempts: how often it is made at most.

    Raises:
        MissingInputError: there is no such file.
        AccessInputError: there is no access to it.
        StoreInputError: naming the URL, if no driver is installed, the disk is full, or all attempts failed.
    """
    filesystem, path = _open(url)
    for attempt in range(1, attempts + 1):
        try:
            return request(filesystem, path)
        except (InputError, TypeError, AttributeError):  # of the user's, or of the program
            raise
        except Exception as error:  # every driver has its own exceptions for a network that fails
            # Not chained: what the driver raised shows the whole URL.
            if final := _final(url, error):
                raise final from None
            if attempt == attempts:
                problem = f"could not be read in {attempts} attempts ({_reason(error)})"
                advice = "check network and server, then start again"
                raise StoreInputError(f"{shown(url)}: {problem}; {advice}") from None
        # Spread, so that processes which failed together do not come back together.
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    raise ValueError(f"attempts must be positive, not {attempts}")


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, which ``fsspec`` keeps for each process, and the path on it."""
    protocol = url.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = f'"fsspec[{protocol}]"' if package == "fsspec" else package
        problem = f"no driver for {protocol}:// is installed ({error})"
        raise StoreInputError(f"{shown(url)}: {problem}; pip install {package}") from None
    except ValueError as error:
        problem = f"{protocol}:// is not known ({shown(str(error))})"
        raise StoreInputError(
            f"{shown(url)}: {problem}; use s3://, gs://, hf://, https:// or a path"
        ) from None
    return filesystem, path


def _final(url: str, error: Exception) -> InputError | None:
    """Return what to tell of an error that would come again, or None if another attempt may succeed."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    name = shown(url)
    if isinstance(error, FileNotFoundError) or status == 404:
        return MissingInputError(f"{name}: no such file; check the address, or upload it")
    if isinstance(error, PermissionError) or status in NO_ACCESS or "Credentials" in type(error).__name__:
        login = LOGINS.get(url.partition("://")[0], "check the address and your credentials")
        return AccessInputError(f"{name}: no access ({_reason(error)}); {login}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f"the disk is full ({error.strerror})"
        return StoreInputError(f"{name}: {problem}; free space, or lower the size of the cache")
    if isinstance(status, int) and 400 <= status < 500 and status not in RETRIED_STATUS:
        return StoreInputError(f"{name}: the server refuses ({_reason(error)}); check the address")
    return None


def _reason(error: Exception) -> str:
    text = shown(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
