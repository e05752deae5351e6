# SPDX-License-Identifier: Apache-2.0
"""Conversations with a reference answer, for supervised fine-tuning."""

from __future__ import annotations

from ixc_lightning.datamodules.base import ShardDataModule
from ixc_lightning.datamodules.collate import InstructionCollator
from ixc_lightning.datamodules.records import Kind


class InstructionDataModule(ShardDataModule):
    """Instruction records in, ``InstructionBatch`` out. Arguments as in ``ShardDataModule``."""

    kind = Kind.INSTRUCTION

    def collator(self) -> InstructionCollator:
        """Takes the last assistant turn as the response."""
        return InstructionCollator(self.encoder, self.domains)
