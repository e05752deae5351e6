# SPDX-License-Identifier: Apache-2.0
"""The trained model as a Hugging Face folder, at the end of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.export import check_target, export_folder, whole
from ixc_lightning.publishing.hub import check_push
from ixc_lightning.publishing.runs import (
    KEY,
    Run,
    describe_shards,
    finite,
    installed_versions,
    public_recipe,
)
from ixc_lightning.types import InputError

SPLITS = ("train", "val")
READING = ("max_tokens", "video_frames", "response_suffix")


class HuggingFaceExport(Callback):
    """Writes ``module.model``, its processor and its card as a Hugging Face folder when ``fit`` ends well.

    Needs a module whose ``model`` has ``save_pretrained``, and a datamodule with ``processor``. A sharded
    model is gathered on the first rank, in its master weights.

    Every checkpoint is told what the card is to say (the settings, the data, the metrics so far), so that
    ``export`` writes the same card from it. Secrets and local paths are left out of both.

    Args:
        folder: where to write, replacing the model that is there; null means ``export`` in the run's log
            folder.
        enabled: false leaves the folder unwritten.
        push_to_hub: repository of the hub, ``owner/name``, to upload the folder to in one commit; null is
            none. The token is ``HF_TOKEN`` of the environment.
        private: whether a repository that is made for it is private.
    """

    def __init__(
        self,
        folder: str | None = None,
        enabled: bool = True,
        push_to_hub: str | None = None,
        private: bool = True,
    ) -> None:
        self.folder = folder
        self.enabled = enabled
        self.push_to_hub = push_to_hub
        self.private = private
        self.run = Run()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out before training, not after it, that nothing can be exported; note what the run is.

        Raises:
            InputError: the strategy is torch's first FSDP, the datamodule names no processor, there is
                something else in the folder's place, or nothing can be pushed to such a repository.
        """
        self.run = _describe(trainer)
        if not self.enabled:
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise InputError(
                "the export cannot gather the weights under FSDPStrategy: give export.enabled: false and, "
                "behind the run, `python -m ixc_lightning export CHECKPOINT FOLDER`; or ModelParallelStrategy"
            )
        if not isinstance(getattr(trainer.datamodule, "processor", None), str):
            raise InputError(
                "the export needs a datamodule that names its processor: fit with one, or give enabled=False"
            )
        if self.folder is not None:
            check_target(self.folder)
        if self.push_to_hub is not None:
            check_push(self.push_to_hub)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell the checkpoint what the card is to say."""
        checkpoint[KEY] = self._run_so_far(trainer).to_checkpoint()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder, on the first rank; all ranks take part where the model is sharded.

        Raises:
            InputError: the hub refuses the folder, which is complete then.
        """
        if not self.enabled or trainer.fast_dev_run:
            return
        log_dir = trainer.log_dir  # on all ranks: the first one tells the others
        folder = self.folder or Path(log_dir or trainer.default_root_dir) / "export"
        with whole(pl_module.model):
            if trainer.is_global_zero:
                path = export_folder(
                    pl_module.model,
                    trainer.datamodule.processor,
                    folder,
                    run=self._run_so_far(trainer),
                    push_to_hub=self.push_to_hub,
                    private=self.private,
                )
                rank_zero_info(f"The model was exported to {path}")

    def _run_so_far(self, trainer: L.Trainer) -> Run:
        return replace(self.run, step=trainer.global_step, metrics=finite(trainer.callback_metrics))


def _describe(trainer: L.Trainer) -> Run:
    """What is known of a run before its first step."""
    data = trainer.datamodule
    return Run(
        recipe=_recipe(trainer),
        data=[entry for split, counts in _shards(data) for entry in describe_shards(split, counts)],
        dropped=dict(getattr(data, "dropped", {})),
        reading={name: getattr(data, name) for name in READING if hasattr(data, name)},
        versions=installed_versions(),
    )


def _recipe(trainer: L.Trainer) -> dict[str, Any]:
    """The settings of a run that the command line started, as they may be shown; else none."""
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            return public_recipe(yaml.safe_load(callback.parser.dump(callback.config, skip_none=True)))
    return {}


def _shards(data: Any) -> Iterator[tuple[str, dict[Path | str, int]]]:
    """The shards of each split with their numbers of records, of a datamodule that reads shards."""
    if not hasattr(data, "dataset"):
        return
    for split in SPLITS:
        try:
            records = data.dataset(split)
        except InputError:  # the split names no shards
            continue
        shards = getattr(records, "records", records).shards
        yield split, dict(zip(shards, records.counts.tolist(), strict=True))
