# SPDX-License-Identifier: Apache-2.0
"""Finding checkpoints of Lightning, and turning them into Hugging Face folders."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError

import lightning as L
import torch

from ixc_lightning.cli.trainer import first_source
from ixc_lightning.export import export_folder
from ixc_lightning.types import InputError


def export_checkpoint(checkpoint: str, folder: str) -> None:
    """Write the model of a checkpoint as a Hugging Face folder, complete with processor and score head.

    Args:
        checkpoint: a .ckpt file that fit wrote.
        folder: where to write; what stands there is replaced.

    Raises:
        InputError: there is no such checkpoint, or it is not of this package.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        raise InputError(
            f"{checkpoint} is a sharded checkpoint; make one file of it first, with "
            f"`python -m lightning.pytorch.utilities.consolidate_checkpoint {checkpoint}`"
        )
    if not path.is_file():
        raise InputError(
            f"there is no checkpoint {checkpoint}; fit writes them below its log folder, in checkpoints/"
        )
    try:
        settings = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["hyper_parameters"]
        import_module("ixc_lightning.modules")  # Lightning builds only classes that are already imported
        # Without its schedules: nothing is trained here, and the number of steps, a link, is not in the file.
        schedules = {name: None for name in settings if name.endswith("scheduler")}
        module = L.LightningModule.load_from_checkpoint(
            path, map_location="cpu", weights_only=True, **schedules
        )
    except InputError:
        raise
    except (UnpicklingError, EOFError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _not_ours(checkpoint) from error
    source = first_source(settings)
    if source is None:
        raise _not_ours(checkpoint)
    print(f"exported to {export_folder(module.model, source, folder)}")


def _not_ours(checkpoint: str) -> InputError:
    return InputError(
        f"{checkpoint} cannot be read as a checkpoint of this package: give a file that "
        "`python -m ixc_lightning fit` wrote, and check that it was written to the end"
    )
