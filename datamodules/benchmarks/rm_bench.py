# SPDX-License-Identifier: Apache-2.0
"""RM-Bench: three styles of a right answer and of a wrong one.

Schema of ``total_dataset.json``, 1,327 records: ``id`` (repeats across domains), ``prompt``, ``chosen`` and
``rejected`` (three each: concise, detailed in plain text, detailed in Markdown) and ``domain``. The files of
single domains, ``NAME_filtered.json``, lack the last one; their name tells it.
"""

from __future__ import annotations

from pathlib import Path

from ixc_lightning.datamodules.benchmarks.reader import BenchmarkItem, BenchmarkReader, question, responses
from ixc_lightning.datamodules.sources._reading import Row

DOMAINS = ("chat", "code", "math", "safety-refuse", "safety-response")
STYLES = 3


class RMBenchReader(BenchmarkReader):
    """Reads RM-Bench."""

    patterns = ("*total_dataset.json", "*_filtered.json")

    def item(self, row: Row) -> BenchmarkItem:
        """The item of a record."""
        domain = row.get("domain") or Path(row.file).name.split(".")[0].removesuffix("_filtered")
        if domain not in DOMAINS:
            raise row.error("domain", f"{domain!r} is none of {', '.join(DOMAINS)}")
        return BenchmarkItem(
            id=row.id(),
            group=domain,
            subgroup="",
            prompt=question(row.text("prompt")),
            chosen=responses(row, "chosen", count=STYLES),
            rejected=responses(row, "rejected", count=STYLES),
        )
