# SPDX-License-Identifier: Apache-2.0
"""Prompts of a tiny family of models as a datamodule, padded on either side."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from transformers import ProcessorMixin

from ixc_lightning.types import PromptBatch
from tests.families import Tiny
from tests.rollout.prompts import prompt_batch


class Encoder:
    """What a module asks a datamodule for."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor


class FamilyPrompts(L.LightningDataModule):
    """One batch with a prompt of each kind of sample that the family takes."""

    def __init__(self, family: Tiny, *, side: str) -> None:
        super().__init__()
        self.encoder = Encoder(family.processor)
        self.batch: PromptBatch = prompt_batch(family.samples()[: len(family.samples()) // 2], side=side)
        self.domains = [str(row) for row in range(len(self.batch.keys))]

    def train_dataloader(self) -> Any:
        """The batch, once."""
        return DataLoader([self.batch], batch_size=None)
