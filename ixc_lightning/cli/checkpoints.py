# SPDX-License-Identifier: Apache-2.0
"""From a Lightning checkpoint to a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from ixc_lightning.cli.trainer import first_source
from ixc_lightning.export import export_folder
from ixc_lightning.types import InputError


def export_checkpoint(checkpoint: str, folder: str) -> None:
    """Write the model of a checkpoint as a Hugging Face folder, with its processor and, for a reward model,
    its head.

    Args:
        checkpoint: a .ckpt file that fit wrote.
        folder: where to write; what stands there is replaced.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise InputError(
            f"there is no checkpoint {checkpoint}; fit writes them below its log folder, in checkpoints/"
        )
    module = L.LightningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    source = first_source(dict(module.hparams))
    if source is None:
        raise InputError(
            f"{checkpoint} does not name the model that it was trained from; was it written by this package?"
        )
    print(f"exported to {export_folder(module.model, source, folder)}")
