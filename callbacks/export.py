# SPDX-License-Identifier: Apache-2.0
"""The trained model as a Hugging Face folder, at the end of training."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.export import export_folder


class HuggingFaceExport(Callback):
    """Writes ``module.model`` and its processor as a Hugging Face folder when ``fit`` ends well.

    Needs a module whose ``model`` has ``save_pretrained``, and a datamodule with ``processor``.

    Args:
        folder: where to write, replacing what is there; null means ``export`` in the run's log folder.
        enabled: false leaves the folder unwritten.
    """

    def __init__(self, folder: str | None = None, enabled: bool = True) -> None:
        self.folder = folder
        self.enabled = enabled

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder, on the first rank."""
        if not self.enabled or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        folder = self.folder or str(Path(trainer.log_dir or trainer.default_root_dir) / "export")
        path = export_folder(pl_module.model, trainer.datamodule.processor, folder)
        rank_zero_info(f"The model was exported to {path}")
