# SPDX-License-Identifier: Apache-2.0
"""Shards in, batches out. A datamodule knows a processor, never a model."""

from ixc_lightning.datamodules.instruction import InstructionDataModule as InstructionDataModule
from ixc_lightning.datamodules.preference import PreferenceDataModule as PreferenceDataModule
