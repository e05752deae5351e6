# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Lightning, and turning them into Hugging Face folders."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch

from ixc_lightning.cli.cards import read_evaluations
from ixc_lightning.cli.consolidate import as_file
from ixc_lightning.cli.trainer import first_source
from ixc_lightning.export import CONFIGS, check_target, export_folder
from ixc_lightning.publishing.hub import check_push
from ixc_lightning.publishing.runs import Run
from ixc_lightning.types import InputError

MODULES = "ixc_lightning.modules"


def export_checkpoint(
    checkpoint: str,
    folder: str,
    *,
    source: str | None = None,
    evaluations: list[str] | str | None = None,
    push_to_hub: str | None = None,
    private: bool = True,
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder, complete with processor, score head and card.

    Of reinforcement learning that is the policy. No GPU is needed.

    Args:
        checkpoint: a .ckpt file that fit wrote, or a folder of that name, which it writes under FSDP.
        folder: where to write; an exported model that stands there is replaced.
        source: the model that training started from, where it does not lie any more where it lay then.
        evaluations: files of scores for the card, or folders with them, which `test` with a recipe of
            recipes/evaluate wrote.
        push_to_hub: repository of the hub to upload the folder to, in one commit; the token is HF_TOKEN.
        private: whether a repository that is made for it is private.

    Raises:
        InputError: there is no such checkpoint, it is not of this package or of another model than its
            source, something else stands in the folder's place, or the hub refuses it.
    """
    check_target(folder)
    if push_to_hub is not None:
        check_push(push_to_hub)
    pages = read_evaluations(evaluations)
    with as_file(_find(checkpoint), beside=Path(folder)) as path:
        saved = _read(path, checkpoint)
        settings = _settings(saved, checkpoint)
        start = _start(settings, source, checkpoint)
        run = Run.of_checkpoint(saved)
        del saved
        module = _build(path, checkpoint, settings, source=source)
    written = export_folder(
        module.model, start, folder, run=run, evaluations=pages, push_to_hub=push_to_hub, private=private
    )
    print(f"exported to {written}")


def _find(checkpoint: str) -> Path:
    path = Path(checkpoint).expanduser()
    if any((path / name).is_file() for name in CONFIGS):
        raise InputError(
            f"{checkpoint} is a model that was exported already; to give its card evaluations, use "
            f"`python -m ixc_lightning card {checkpoint} --evaluations FILES`"
        )
    if not path.exists():
        raise InputError(
            f"there is no checkpoint {checkpoint}; fit writes them below its log folder, in checkpoints/"
        )
    return path


def _read(path: Path, name: str) -> dict[str, Any]:
    """The checkpoint, its weights left on the disk."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise _unreadable(name) from error
    if not isinstance(saved, dict) or not {"state_dict", "hyper_parameters"} <= saved.keys():
        raise _unreadable(name)
    return saved


def _settings(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of the module, once it is known that they say what is to be built."""
    settings: dict[str, Any] = saved["hyper_parameters"]
    made_by = settings.get("_class_path")
    if made_by is None or first_source(settings) is None:
        raise InputError(
            f"{name} does not say which model it is of, as checkpoints do whose run was started from Python: "
            "build the module there, load the checkpoint's state_dict into it, and call "
            "ixc_lightning.export.export_folder with its model"
        )
    if not made_by.startswith(f"{MODULES}."):
        raise InputError(
            f"{name} was written by {made_by}, whose code is not run here: load it with that class in "
            "Python, and call ixc_lightning.export.export_folder with its model"
        )
    return settings


def _start(settings: dict[str, Any], source: str | None, name: str) -> str:
    """The model that training started from, whose config and processor are needed."""
    start = source or first_source(settings)
    assert start is not None  # ``_settings`` has found one
    if start.startswith(("/", ".", "~")) and not Path(start).expanduser().is_dir():
        raise InputError(
            f"{name} is of a model that was trained from {start}, where there is no folder: "
            "give --source, a folder with the same model and its processor, or its hub id"
        )
    return start


def _build(path: Path, name: str, settings: dict[str, Any], *, source: str | None) -> L.LightningModule:
    """The module with the weights of the checkpoint, on the CPU."""
    import_module(MODULES)  # Lightning builds only classes that are already imported
    # Without its schedules: nothing is trained here, and the number of steps, a link, is not in the file.
    changes: dict[str, Any] = {key: None for key in settings if key.endswith("scheduler")}
    if source is not None:
        changes |= _with_source(settings, source)
    try:
        return L.LightningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True, **changes)
    except InputError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _unreadable(name) from error


def _with_source(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The one setting at the top that holds the first ``source``, with another one in its place."""
    for key, value in settings.items():
        if first_source({key: value}) is not None:
            return {key: source if key == "source" else _replaced(value, source)}
    return {}


def _replaced(settings: dict[str, Any], source: str) -> dict[str, Any]:
    if isinstance(settings.get("source"), str):
        return {**settings, "source": source}
    return {**settings, **_with_source(settings, source)}


def _unreadable(name: str) -> InputError:
    return InputError(
        f"{name} cannot be read as a checkpoint of this package: give a file that "
        "`python -m ixc_lightning fit` wrote, and check that it was written to the end"
    )
