# SPDX-License-Identifier: Apache-2.0
"""RewardBench 2: prompts with one or more right answers among several.

Schema of ``allenai/reward-bench-2``, 1,865 rows: ``id``, ``prompt``, ``chosen`` and ``rejected`` (lists),
``num_correct``, ``subset``. Ids of the subset Ties are ``ref:N`` and ``tied:N``, two forms of prompt N.
"""

from __future__ import annotations

import re

from ixc_lightning.datamodules.benchmarks.reader import (
    BenchmarkItem,
    BenchmarkReader,
    question,
    responses,
    slug,
)
from ixc_lightning.datamodules.sources._reading import Row

SUBSETS = ("factuality", "precise_if", "math", "safety", "focus", "ties")
FORM = re.compile(r"(ref|tied):\d+")


class RewardBench2Reader(BenchmarkReader):
    """Reads RewardBench 2."""

    patterns = ("*test*.parquet",)

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a row."""
        group = slug(row.text("subset"))
        if group not in SUBSETS:
            raise row.error("subset", f"{row.text('subset')!r} is none of RewardBench 2's")
        if group == "ties" and not FORM.fullmatch(row.id()):
            raise row.error("id", f"{row.id()!r} must be ref:N or tied:N in the subset Ties")
        return BenchmarkItem(
            id=row.id(),
            group=group,
            subgroup="",
            prompt=question(row.text("prompt")),
            chosen=responses(row, "chosen", count=row.get("num_correct")),
            rejected=responses(row, "rejected", count=row.get("num_incorrect")),
        )
