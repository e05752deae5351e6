# SPDX-License-Identifier: Apache-2.0
"""RewardBench: pairs of text.

Schema of ``allenai/reward-bench``, split ``filtered``, 2,985 rows: ``prompt``, ``chosen``, ``rejected``,
``subset``, ``id``. The prior sets (``allenai/preference-test-sets``) are one file each, named after the set,
with a list of messages as ``prompt``.
"""

from __future__ import annotations

from pathlib import Path

from ixc_lightning.datamodules.benchmarks.reader import BenchmarkItem, BenchmarkReader, pair_of, question
from ixc_lightning.datamodules.sources._drafts import Turn
from ixc_lightning.datamodules.sources._files import find_files
from ixc_lightning.datamodules.sources._reading import Row

SUBSETS = (
    *(f"alpacaeval-{name}" for name in ("easy", "length", "hard")),
    *(f"mt-bench-{name}" for name in ("easy", "med", "hard")),
    *(
        f"llmbar-{name}"
        for name in ("natural", "adver-neighbor", "adver-GPTInst", "adver-GPTOut", "adver-manual")
    ),
    *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
    *("donotanswer", "math-prm"),
    *(f"hep-{name}" for name in ("cpp", "go", "java", "js", "python", "rust")),
)
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")


class RewardBenchReader(BenchmarkReader):
    """Reads RewardBench.

    Args:
        prior_sets: a folder or pattern with the files of the prior sets, to score them too; files of other
            sets are passed over.
    """

    patterns = ("*filtered*.parquet", "*filtered*.json*")

    def __init__(self, prior_sets: str | None = None) -> None:
        self.prior_sets = prior_sets

    def files(self, path: str) -> list[Path]:
        """The file of the filtered split, and those of the prior sets."""
        found = super().files(path)
        if self.prior_sets is not None:
            found += [file for file in find_files(self.prior_sets) if _prior_set(str(file))]
        return found

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a row."""
        chosen, rejected = pair_of(row, "chosen", "rejected")
        group = _prior_set(row.file) or row.text("subset")
        if group not in SUBSETS + PRIOR_SETS:
            raise row.error("subset", f"{group!r} is none of RewardBench's; is this its filtered split?")
        return BenchmarkItem(
            id=row.id(),
            group=group,
            subgroup="",
            prompt=_turns(row),
            chosen=chosen,
            rejected=rejected,
        )


def _prior_set(file: str) -> str | None:
    stem = Path(file).name.split(".")[0].split("-")[0]
    return stem if stem in PRIOR_SETS else None


def _turns(row: Row) -> tuple[Turn, ...]:
    prompt = row.require("prompt")
    if isinstance(prompt, str):
        return question(prompt)
    try:
        turns = tuple(Turn(message["role"], (message["content"],)) for message in prompt)
    except (TypeError, KeyError):
        turns = ()
    if not turns or not all(isinstance(turn.parts[0], str) for turn in turns):
        raise row.error("prompt", "must be a text or a list of messages; download the file again")
    return turns
