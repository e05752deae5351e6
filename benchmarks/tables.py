# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of ``docs/benchmarks.md`` from the lines of JSON that the benchmarks left.

``python benchmarks/tables.py`` puts one table for each file under ``benchmarks/results`` between the marks of
its name, ``<!-- NAME -->`` and ``<!-- /NAME -->``; the tables of benchmarks that left no file stay as they
are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from _timing import RESULTS

PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
MEASURED = ("ratio", "spread", "cpu_ratio", "ceiling", "a", "b")


def table(measured: Mapping[str, Any]) -> str:
    """The table of one benchmark, with the machine and the versions under it."""
    settings = [name for name in measured["results"][0] if name not in MEASURED]
    head = [*settings, "against", "times as fast", "from … to", "by CPU time", "ceiling"]
    rows = [
        [
            *(str(result[name]) for name in settings),
            result["b"]["way"],
            f"**{result['ratio']:.2f}**",
            " … ".join(f"{end:.2f}" for end in result["spread"]),
            f"{result['cpu_ratio']:.2f}",
            "" if result["ceiling"] is None else f"{result['ceiling']:.2f}",
        ]
        for result in measured["results"]
    ]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    versions = ", ".join(f"{package} {number}" for package, number in measured["versions"].items())
    return "\n".join([*lines, "", f"{measured['machine']}; {versions}."])


def with_table(page: str, measured: Mapping[str, Any]) -> str:
    """The page with the benchmark's table in its place."""
    name = measured["name"]
    region = f"<!-- {name} -->\n\n{table(measured)}\n\n<!-- /{name} -->"
    page, found = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _: region, page, flags=re.DOTALL)
    print(f"{name}: {'written' if found else f'no place in {PAGE}'}")
    return page


def main() -> None:
    """Rewrite the page."""
    page = PAGE.read_text()
    for path in sorted(RESULTS.glob("*.json")):
        page = with_table(page, json.loads(path.read_text()))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
