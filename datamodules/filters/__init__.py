# SPDX-License-Identifier: Apache-2.0
"""Rules that leave training records out, each reporting how many."""

from ixc_lightning.datamodules.filters.base import Filter
from ixc_lightning.datamodules.filters.decontaminate import Decontaminate
from ixc_lightning.datamodules.filters.length_ratio import LengthRatio
from ixc_lightning.datamodules.filters.near_duplicates import NearDuplicates
from ixc_lightning.datamodules.filters.released_text import ReleasedText

__all__ = ["Decontaminate", "Filter", "LengthRatio", "NearDuplicates", "ReleasedText"]
