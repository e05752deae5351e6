# SPDX-License-Identifier: Apache-2.0
"""MM-RLHF-RewardBench: pairs of answers about pictures and clips.

Schema of ``mm_reward_bench.jsonl``, 170 rows: ``id`` (of the prompt: its pairs share it), ``prompt``,
``image`` or ``video`` (a path), ``chosen``, ``rejected``. The category is a part of the path.
"""

from __future__ import annotations

from ixc_lightning.datamodules.benchmarks.reader import BenchmarkItem, BenchmarkReader, pair_of, question
from ixc_lightning.datamodules.sources._reading import Row

GROUPS = ("mcq", "long", "short", "safety", "video")
"""The first of them that the path holds is the category."""


class MMRLHFRewardBenchReader(BenchmarkReader):
    """Reads MM-RLHF-RewardBench."""

    patterns = ("*mm_reward_bench.jsonl",)
    media_fields = ("image", "video")

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a row."""
        field = "video" if row.get("video") else "image"
        path = row.text(field)
        group = next((name for name in GROUPS if name in path), None)
        if group is None:
            raise row.error(field, f"{path!r} names none of the categories {', '.join(GROUPS)}")
        chosen, rejected = pair_of(row, "chosen", "rejected")
        return BenchmarkItem(row.id(), group, "", question(row.text("prompt")), chosen, rejected)
