# SPDX-License-Identifier: Apache-2.0
"""To Hugging Face folders: weights, configuration and processor together, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Protocol, runtime_checkable

from transformers import AutoProcessor


@runtime_checkable
class Saveable(Protocol):
    """A model that writes itself as transformers does: a ``Backbone`` or a ``RewardModel``."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and configuration."""


def export_folder(model: Saveable, processor: str, folder: str | Path) -> Path:
    """Write a model and its processor as one Hugging Face folder, and give its path.

    The folder appears under its name only when it is complete; one that stood there before is replaced.

    Args:
        model: what to write.
        processor: hub id or folder of the processor that the model was trained with.
        folder: where to write; ``~`` is expanded.
    """
    target = Path(folder).expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(unfinished)
        AutoProcessor.from_pretrained(str(Path(processor).expanduser())).save_pretrained(unfinished)
        unfinished.chmod(0o755)
        _replace(target, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _replace(target: Path, new: Path) -> None:
    """Rename ``new`` to ``target``, moving aside what is there; a folder cannot be renamed over a full one."""
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        target.rename(old / target.name)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
