# SPDX-License-Identifier: Apache-2.0
"""Tars that no careful program would write."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_tar(path: Path, members: Iterable[tuple[str, Any]]) -> None:
    """Write members as they come: bytes as they are, all else as JSON, and nothing is checked."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
