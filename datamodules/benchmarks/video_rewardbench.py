# SPDX-License-Identifier: Apache-2.0
"""VideoRewardBench: pairs of answers about a clip.

1,563 triplets of prompt, chosen and rejected response. The names of the released files' fields could not be
looked up, so they are settings; the defaults are what such files mostly say.
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

GROUPS = ("long_perception", "short_perception", "knowledge", "reasoning", "safety")
NAMES = {
    **{group: group for group in GROUPS},
    **dict.fromkeys(("long_form_perception", "perception_long", "perception_long_form"), "long_perception"),
    **dict.fromkeys(
        ("short_form_perception", "perception_short", "perception_short_form"), "short_perception"
    ),
}
"""Ways to write the categories, as ``slug`` has them."""


class VideoRewardBenchReader(BenchmarkReader):
    """Reads VideoRewardBench.

    Args:
        id: field of the item's name.
        prompt: field of the question.
        video: field of the clip: a path below ``media``.
        chosen: field of the better response.
        rejected: field of the other one.
        category: field of the category.
    """

    def __init__(
        self,
        *,
        id: str = "id",
        prompt: str = "question",
        video: str = "video",
        chosen: str = "chosen",
        rejected: str = "rejected",
        category: str = "category",
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.media_fields = (video,)
        self.pair = chosen, rejected
        self.category = category

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a row."""
        name = slug(row.text(self.category))
        if name not in NAMES:
            raise row.error(
                self.category,
                f"{row.text(self.category)!r} is none of {', '.join(GROUPS)}; name the field of the category "
                "with --data.reader.category",
            )
        chosen, rejected = pair_of(row, *self.pair)
        prompt = question(row.text(self.prompt))
        return BenchmarkItem(row.id(self.id), NAMES[name], "", prompt, chosen, rejected)
