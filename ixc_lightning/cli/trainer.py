# SPDX-License-Identifier: Apache-2.0
"""LightningCLI as this package uses it: recipes, what they need made first, and names given once."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
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

LIGHTNINGS_OWN_NAMES = ("best", "last", "hpc")
"""What Lightning understands as ``--ckpt_path`` besides a path."""


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
        for schedule in ("scheduler", "critic_scheduler"):
            parser.link_arguments("trainer.max_steps", f"model.init_args.{schedule}.init_args.total_steps")

    def before_instantiate_classes(self) -> None:
        """Refuse a device or a checkpoint that is not there, then make what the recipe needs."""
        settings = self.config[self.subcommand]
        if settings.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise InputError(
                f"trainer.accelerator is {settings.trainer.accelerator}, but this machine has no GPU that "
                "torch can use; give --trainer.accelerator cpu (or auto), or look at nvidia-smi and "
                "torch.version.cuda"
            )
        if settings.ckpt_path is not None:
            settings.ckpt_path = _find_checkpoint(settings.ckpt_path)
        if settings.weights_only is None:
            settings.weights_only = True  # nothing is unpickled unless the user asks for it
        if settings.trainer.accelerator in ("auto", "cpu") and not torch.cuda.is_available():
            _leave_cores(settings.data.get("init_args", {}).get("num_workers") or 0)
        make_missing([Need(**vars(need)) for need in settings.needs], used_by=settings)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the Trainer.

        Raises:
            InputError: Lightning cannot build it as asked.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"trainer: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Keep the recipe: Lightning would put the checkpoint's settings over it, and over explicit flags."""


def run_trainer(words: list[str], *, cli: type[CLI] = CLI, run: bool = True) -> CLI:
    """Run a verb of the Trainer.

    Args:
        words: the command line.
        cli: what reads it.
        run: whether the first word is a verb to be run; else the recipe is only read.

    Raises:
        InputError: a recipe or a checkpoint that is not there, or a Trainer that cannot be built as asked.
    """
    # Lightning warns when words are handed over in a process that has its own; here they are the same.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # lightning 2.6.6 calls jsonargparse in ways that 4.53 calls old (2026-11); nobody here can change that.
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.cli|jsonargparse\._deprecated")
    # Frozen parts are in evaluation mode because we mean it.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # lightning 2.6.6 on torch 2.15, its own pytree helper (2026-11).
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    try:
        return cli(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "python -m ixc_lightning"},
            args=find_recipes(words),
            run=run,
        )
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except IsADirectoryError as error:
        raise InputError(
            f"the checkpoint {error.filename} is sharded, and this strategy takes one file: make it with "
            f"`python -m ixc_lightning consolidate {error.filename} FILE`, or give ModelParallelStrategy as "
            "trainer.strategy"
        ) from error
    except UnpicklingError as error:
        raise InputError(
            "the file of --ckpt_path is no checkpoint, or holds more than plain data; give one that fit "
            "wrote, or --weights_only false if you trust it to run code on this machine"
        ) from error


def first_source(settings: Any) -> str | None:
    """The first ``source`` in a model's settings, however deep, so that the processor is named once."""
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if not isinstance(settings, dict):
        return None
    if isinstance(settings.get("source"), str):
        return settings["source"]
    return next((found for value in settings.values() if (found := first_source(value))), None)


def _leave_cores(workers: int) -> None:
    """Compute with the cores that the loader's workers leave; with more threads each waits for the other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores - workers)))


def _find_checkpoint(name: str) -> str:
    """The checkpoint with its home expanded; what Lightning finds for itself is left to it."""
    if name in LIGHTNINGS_OWN_NAMES or ":" in name:  # registry:… and URLs
        return name
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            f"there is no checkpoint {name}; fit writes them below its log folder, in checkpoints/"
        )
    return str(path)
