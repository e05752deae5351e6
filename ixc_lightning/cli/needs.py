# SPDX-License-Identifier: Apache-2.0
"""What a recipe needs and how to make it: shards from a converter, a model from another recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from jsonargparse import Namespace

from ixc_lightning.types import InputError

# A command that makes something runs alone, whatever launcher started the ranks that wait for it.
LAUNCHER_PREFIXES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_", "TORCHELASTIC_", "SLURM_", "OMPI_", "PMI_"),
)


@dataclass(frozen=True)
class Need:
    """A path that a recipe names, and the command that makes it.

    Args:
        path: a file or folder; ``~`` is expanded.
        make: words of the command after ``python -m ixc_lightning``. What it writes at ``path`` must appear
            there whole.
    """

    path: str
    make: list[str]


def make_missing(needs: Sequence[Need], *, used_by: Namespace) -> None:
    """Make each need that is not there, once, if another setting of the run names its path.

    A run that names its own data and model therefore makes nothing. Processes that start together wait for
    the first.

    Args:
        needs: in the order in which to make them.
        used_by: all settings of the run.

    Raises:
        InputError: a command failed, or left nothing at the path.
    """
    settings = used_by.as_dict()
    settings.pop("needs", None)
    named = set(_strings(settings))
    for need in needs:
        if any(value == need.path or value.startswith(need.path + "/") for value in named):
            _make(need)


def _make(need: Need) -> None:
    path = Path(need.path).expanduser()
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):
        if path.exists():
            return
        command = [os.path.expanduser(word) for word in need.make]
        shown = f"python -m ixc_lightning {' '.join(need.make)}"
        print(f"{need.path} is not there yet: making it with `{shown}`", flush=True)
        alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
        status = subprocess.run(
            [sys.executable, "-m", "ixc_lightning", *command], env=alone, check=False
        ).returncode
        if status:
            raise InputError(
                f"{need.path} could not be made: `{shown}` ended with status {status}; "
                "its own message is above"
            )
        if not path.exists():
            raise InputError(
                f"{need.path} could not be made: `{shown}` wrote nothing there; correct needs in the recipe"
            )


def _strings(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict):
        for value in settings.values():
            yield from _strings(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _strings(value)
