# SPDX-License-Identifier: Apache-2.0
"""A small set of digits and a trainer that leaves nothing behind, for tests that train for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from ixc_lightning.datamodules import InstructionDataModule, PreferenceDataModule

PAIRS = 48
HELDOUT = 16
FRAMES = 4


def preference_data(digits: Path, tiny: Path, **options: Any) -> PreferenceDataModule:
    """The small preference set, read with the tiny model's processor."""
    settings = {
        "train": str(digits / "preference/train"),
        "val": str(digits / "preference/heldout"),
        "batch_size": 8,
    }
    return PreferenceDataModule(str(tiny), **{**settings, "video_frames": FRAMES, **options})


def instruction_data(digits: Path, tiny: Path, **options: Any) -> InstructionDataModule:
    """The small instruction set, read with the tiny model's processor."""
    settings = {
        "train": str(digits / "instruction/train"),
        "val": str(digits / "instruction/heldout"),
        "batch_size": 8,
    }
    return InstructionDataModule(str(tiny), **{**settings, "video_frames": FRAMES, **options})


def trainer(folder: Path, **options: Any) -> L.Trainer:
    """A quiet trainer on the CPU that writes below ``folder``."""
    settings = {
        "accelerator": "cpu",
        "logger": TensorBoardLogger(folder, name="logs", version=0),
        "default_root_dir": folder,
        "max_steps": 2,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(**{**settings, **options})
