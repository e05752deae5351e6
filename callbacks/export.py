# SPDX-License-Identifier: Apache-2.0
"""The trained model as a Hugging Face folder, at the end of training."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.export import export_folder, whole
from ixc_lightning.types import InputError


class HuggingFaceExport(Callback):
    """Writes ``module.model`` and its processor as a Hugging Face folder when ``fit`` ends well.

    Needs a module whose ``model`` has ``save_pretrained``, and a datamodule with ``processor``. A sharded
    model is gathered on the first rank, in its master weights.

    Args:
        folder: where to write, replacing what is there; null means ``export`` in the run's log folder.
        enabled: false leaves the folder unwritten.
    """

    def __init__(self, folder: str | None = None, enabled: bool = True) -> None:
        self.folder = folder
        self.enabled = enabled

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out before training, not after it, that nothing can be exported.

        Raises:
            InputError: the datamodule names no processor, or there is a file in the folder's place.
        """
        if not self.enabled:
            return
        if not isinstance(getattr(trainer.datamodule, "processor", None), str):
            raise InputError(
                "the export needs a datamodule that names its processor: fit with one, or give enabled=False"
            )
        if self.folder is not None and Path(self.folder).expanduser().is_file():
            raise InputError(f"{self.folder} is a file: name a folder to export to")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder, on the first rank; all ranks take part where the model is sharded."""
        if not self.enabled or trainer.fast_dev_run:
            return
        log_dir = trainer.log_dir  # on all ranks: the first one tells the others
        folder = self.folder or Path(log_dir or trainer.default_root_dir) / "export"
        with whole(pl_module.model):
            if trainer.is_global_zero:
                path = export_folder(pl_module.model, trainer.datamodule.processor, folder)
                rank_zero_info(f"The model was exported to {path}")
