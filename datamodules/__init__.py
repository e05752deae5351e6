# SPDX-License-Identifier: Apache-2.0
"""Shards in, batches out. A datamodule knows a processor, never a model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ixc_lightning.datamodules.benchmarks.datamodule import BenchmarkDataModule as BenchmarkDataModule
    from ixc_lightning.datamodules.cleaning import CleaningDataModule as CleaningDataModule
    from ixc_lightning.datamodules.instruction import InstructionDataModule as InstructionDataModule
    from ixc_lightning.datamodules.pair_making import PairMakingDataModule as PairMakingDataModule
    from ixc_lightning.datamodules.preference import PreferenceDataModule as PreferenceDataModule
    from ixc_lightning.datamodules.prompts import PromptDataModule as PromptDataModule
    from ixc_lightning.datamodules.scoring import ScoringDataModule as ScoringDataModule
else:

    def __getattr__(name: str) -> type:
        """Load a datamodule when it is named: shards and converters do without Lightning and transformers."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


__all__ = [
    "BenchmarkDataModule",
    "CleaningDataModule",
    "InstructionDataModule",
    "PairMakingDataModule",
    "PreferenceDataModule",
    "PromptDataModule",
    "ScoringDataModule",
]

_MODULES = {
    "BenchmarkDataModule": "ixc_lightning.datamodules.benchmarks.datamodule",
    "CleaningDataModule": "ixc_lightning.datamodules.cleaning",
    "InstructionDataModule": "ixc_lightning.datamodules.instruction",
    "PairMakingDataModule": "ixc_lightning.datamodules.pair_making",
    "PreferenceDataModule": "ixc_lightning.datamodules.preference",
    "PromptDataModule": "ixc_lightning.datamodules.prompts",
    "ScoringDataModule": "ixc_lightning.datamodules.scoring",
}
