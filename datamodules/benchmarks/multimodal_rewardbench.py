# SPDX-License-Identifier: Apache-2.0
"""Multimodal RewardBench: pairs of answers about a picture.

Schema of ``all_data.json``: ``ID``, ``Text``, ``Image`` (a path; the pictures are fetched by a script of the
benchmark), ``Output1``, ``Output2``, ``Better`` ("Output1" or "Output2"), ``Category``. The public part has
4,711 of 5,000 pairs. Safety is split into bias and toxicity, reasoning into mathematics and coding, by ids.
"""

from __future__ import annotations

from ixc_lightning.datamodules.benchmarks.reader import (
    BenchmarkItem,
    BenchmarkReader,
    pair_of,
    question,
    slug,
)
from ixc_lightning.datamodules.sources._reading import Row

OUTPUTS = ("Output1", "Output2")
PARTS = {"safety": ("pairs", "bias", "toxicity"), "reasoning": ("math", "math", "coding")}
"""How a category is split: the start of an id, and the names with and without it."""


class MultimodalRewardBenchReader(BenchmarkReader):
    """Reads Multimodal RewardBench."""

    patterns = ("*all_data.json",)
    media_fields = ("Image",)

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a record, its better output first."""
        better = row.text("Better")
        if better not in OUTPUTS:
            raise row.error("Better", f"must be Output1 or Output2, not {better!r}")
        other = OUTPUTS[1 - OUTPUTS.index(better)]
        chosen, rejected = pair_of(row, better, other)
        group = slug(row.text("Category"))
        return BenchmarkItem(
            id=row.id("ID"),
            group=group,
            subgroup=_part(group, row.id("ID")),
            prompt=question(row.text("Text")),
            chosen=chosen,
            rejected=rejected,
        )


def _part(group: str, name: str) -> str:
    if group not in PARTS:
        return ""
    start, those, others = PARTS[group]
    return f"{group}_{those if name.startswith(start) else others}"
