# SPDX-License-Identifier: Apache-2.0
"""A folder that a run fills with entries, and that a later run goes on with, if it does the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
from filelock import FileLock, Timeout

from ixc_lightning.callbacks.parts import PartFiles
from ixc_lightning.callbacks.tables import replaced
from ixc_lightning.types import InputError

IDENTITY = "run.json"


class RunFolder:
    """The entries of a run below ``parts/``, who they are of, and a lock that keeps other runs out.

    All ranks make one, and call ``check`` and ``close`` together.

    Args:
        folder: made, if it is not there.
        trainer: tells rank and strategy.

    Raises:
        InputError: another run is writing to the folder, or it cannot be written to.
    """

    def __init__(self, folder: Path, trainer: L.Trainer) -> None:
        self.folder = folder
        self.lock: FileLock | None = None
        self._lock(trainer)
        self.parts = PartFiles(folder / "parts", rank=trainer.global_rank)

    def done(self) -> np.ndarray:
        """Rows of all entries of earlier runs."""
        return self.parts.lines().rows

    def check(self, found: Mapping[str, str]) -> None:
        """Make sure that the entries are of this run, as far as it knows yet who it is.

        Args:
            found: fingerprints by what they are of, such as ``data``.

        Raises:
            InputError: naming what was another one, or if the note of an earlier run cannot be read.
        """
        for name, mark in _read(self.folder).items():
            if name in found and found[name] != mark:
                raise InputError(
                    f"{self.folder} holds the entries of another run, whose {name} was another one: give "
                    "another folder, or delete this one"
                )

    def note(self, found: Mapping[str, str]) -> None:
        """Write down whose entries these are; for the first rank."""
        with replaced(self.folder / IDENTITY) as unfinished:
            unfinished.write_text(json.dumps({**_read(self.folder), **found}, indent=2) + "\n")

    def close(self) -> None:
        """End writing, and let other runs have the folder."""
        self.parts.close()
        if self.lock is not None:
            self.lock.release()

    def _lock(self, trainer: L.Trainer) -> None:
        """Keep other runs out of the folder, until this process ends in whatever way."""
        problem = ""
        if trainer.is_global_zero:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock = FileLock(self.folder / ".lock", timeout=0)
                self.lock.acquire()
            except Timeout:
                problem = "another run is writing there; give another folder"
            except OSError as error:
                problem = f"cannot be written to ({error.strerror}); give another folder"
        if problem := trainer.strategy.broadcast(problem):
            raise InputError(f"{self.folder}: {problem}")


def _read(folder: Path) -> dict[str, str]:
    path = folder / IDENTITY
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete the folder, and start again") from error
