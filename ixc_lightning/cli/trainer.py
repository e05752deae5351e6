# SPDX-License-Identifier: Apache-2.0
"""LightningCLI as this package uses it: recipes, what they need made first, and names given once."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ixc_lightning.callbacks import HuggingFaceExport
from ixc_lightning.cli.needs import Need, make_missing
from ixc_lightning.cli.recipes import find_recipes
from ixc_lightning.types import InputError


class CLI(LightningCLI):
    """``--model`` and ``--data`` by class path; a model's ``source`` also names the data's processor."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a recipe has besides trainer, model and data."""
        parser.add_argument(
            "--needs",
            type=list[Need],
            default=[],
            help="What to make first where a setting names a path that is not there.",
        )
        parser.add_lightning_class_args(HuggingFaceExport, "export")
        parser.link_arguments("model", "data.init_args.processor", compute_fn=first_source)
        parser.link_arguments("trainer.max_steps", "model.init_args.scheduler.init_args.total_steps")

    def before_instantiate_classes(self) -> None:
        """Make what is missing, and refuse a device that is not there before anything is loaded."""
        settings = self.config[self.subcommand]
        if settings.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise InputError(
                f"trainer.accelerator is {settings.trainer.accelerator}, but this machine has no GPU that torch can use; "
                "give --trainer.accelerator cpu (or auto), or look at nvidia-smi and torch.version.cuda"
            )
        make_missing(settings.needs, used_by=settings)

    def _parse_ckpt_path(self) -> None:
        """Leave the recipe as it is: Lightning would overwrite it, and even explicit flags, with the checkpoint's settings."""


def run_trainer(words: list[str]) -> CLI:
    """Run a verb of the Trainer.

    Raises:
        InputError: a recipe that is not there, or a Trainer that cannot be built as asked.
    """
    # Lightning warns when words are handed over in a process that has its own; here they are the same, recipes found.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    try:
        return CLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "python -m ixc_lightning"},
            args=find_recipes(words),
        )
    except MisconfigurationException as error:
        raise InputError(str(error)) from error


def first_source(settings: Any) -> str | None:
    """The ``source`` of a model's settings, however deep; the first one found, so that the processor is named once."""
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if not isinstance(settings, dict):
        return None
    if isinstance(settings.get("source"), str):
        return settings["source"]
    return next((found for value in settings.values() if (found := first_source(value))), None)
