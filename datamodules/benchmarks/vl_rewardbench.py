# SPDX-License-Identifier: Apache-2.0
"""VL-RewardBench: pairs of answers about one picture.

Schema of the hub (``MMInstruction/VL-RewardBench``, 1,247 rows; 1,250 before): ``id``, ``query``,
``response`` (two), ``image`` ({bytes, path}) and ``human_ranking``, the rank of each response, 0 being
better. The file that the paper's authors score has ``image_path`` in place of ``image``. Ids repeat. The
queries may hold the mark ``<image>``, which is taken out: chat templates put their own.
"""

from __future__ import annotations

import re

from ixc_lightning.datamodules.benchmarks.reader import BenchmarkItem, BenchmarkReader, question, responses
from ixc_lightning.datamodules.sources._reading import Row

GROUP_OF_PREFIX = {
    **dict.fromkeys(("RLAIF", "RLHF", "hallucination"), "hallucination"),
    **dict.fromkeys(("mathverse", "mmmu"), "reasoning"),
}
"""Group by what stands before the first ``_`` or ``-`` of an id; everything else is general."""
GROUP_OF_FOLDER = {
    "reasoning_tasks": "reasoning",
    **dict.fromkeys(("vlfeedback", "wildvision-battle"), "general"),
    **dict.fromkeys(("povid", "rlhf-v", "rlaif-v"), "hallucination"),
}
"""Group by a part of ``image_path``, where the file has it."""
RANKINGS = ([0, 1], [1, 0])
MARK = re.compile(r"<image>\n?")


class VLRewardBenchReader(BenchmarkReader):
    """Reads VL-RewardBench."""

    patterns = ("*test*.parquet", "*combined_data_tagged.jsonl")
    media_fields = ("image", "image_path")

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a row, its better response first."""
        given = responses(row, "response", count=2)
        ranking = row.items("human_ranking")
        if ranking not in RANKINGS:
            raise row.error("human_ranking", f"must be [0, 1] or [1, 0], not {ranking}; download it again")
        best = ranking.index(0)
        return BenchmarkItem(
            id=row.id(),
            group=_group(row),
            subgroup="",
            prompt=question(MARK.sub("", row.text("query")).strip()),
            chosen=(given[best],),
            rejected=(given[1 - best],),
        )


def _group(row: Row) -> str:
    path = row.get("image_path")
    if isinstance(path, str):
        for folder, group in GROUP_OF_FOLDER.items():
            if folder in path:
                return group
        raise row.error("image_path", f"{path!r} names none of the folders {', '.join(GROUP_OF_FOLDER)}")
    return GROUP_OF_PREFIX.get(re.split("[_-]", row.id())[0], "general")
