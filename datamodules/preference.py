# SPDX-License-Identifier: Apache-2.0
"""Preference pairs for reward models."""

from __future__ import annotations

from ixc_lightning.datamodules.base import ShardDataModule
from ixc_lightning.datamodules.collate import PreferenceCollator
from ixc_lightning.datamodules.records import Kind


class PreferenceDataModule(ShardDataModule):
    """Preference records in, ``PreferenceBatch`` out. Arguments as in ``ShardDataModule``."""

    kind = Kind.PREFERENCE

    def collator(self) -> PreferenceCollator:
        """Puts each prompt, and its pixels, once, and both responses after it."""
        return PreferenceCollator(self.encoder, self.domains)
