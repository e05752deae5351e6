# SPDX-License-Identifier: Apache-2.0
"""Settings as they may be shown to anybody: without secrets, and without the paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LEFT_OUT = "(left out)"

SECRET_NAME = re.compile(
    r"(^|_)(passw(or)?d|passphrase|secrets?|credentials?|authorization"
    r"|(api|access|auth|private|signing|secret|hf|hub|bearer|session|wandb)_?(key|token))$|^token$"
)
"""Names of settings whose value is never shown; ``max_tokens`` and ``reward_token`` are none of them."""
SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+|(?i:bearer)\s+\S{8,}"
)
"""Tokens of the hub, of model services, code hosts and object stores, and signed web tokens."""
LOGIN = re.compile(r"(\b[a-z][\w+.-]*://)[^/@\s]*@")
QUERY = re.compile(r"(\bhttps?://[^?\s]+)\?\S+")
LOCAL = re.compile(
    r"(?:^|(?<=[\s=,\"':\[]))(?:file://)?(?:~[\w-]*|\.{1,2})?(?:/[^\s/:'\",\]]+)*/([^\s/:'\",\]]+)"
)
WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:\\(?:[^\\\s'\",]+\\)*([^\\\s'\",]+)")


def public(value: Any, *, name: str = "") -> Any:
    """Return plain data with nothing in it that names a secret or a place on this machine.

    Values of settings that are called like a secret, and texts that look like one, become ``(left out)``.
    Of a local path the last part stays, behind ``…/``. Logins and queries of URLs go, because either may give
    access. Names that lead nowhere here, such as ``org/model``, stay as they are.

    Args:
        value: nested mappings and sequences of numbers, texts, truth values and nulls.
        name: of the setting.
    """
    if isinstance(value, Mapping):
        return {str(key): public(inner, name=str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner, name=name) for inner in value]
    if value is not None and SECRET_NAME.search(name.lower().replace("-", "_")):
        return LEFT_OUT
    if value is None or isinstance(value, bool | int | float):
        return value
    return _public_text(str(value))


def _public_text(text: str) -> str:
    text = SECRET_VALUE.sub(LEFT_OUT, text)
    text = QUERY.sub(r"\1?…", LOGIN.sub(r"\1", text))
    if "/" in text and "://" not in text and _is_here(text):
        return f"…/{Path(text).name}"
    return WINDOWS.sub(r"…/\1", LOCAL.sub(r"…/\1", text))


def _is_here(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or a home of nobody
        return False
