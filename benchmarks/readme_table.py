# SPDX-License-Identifier: Apache-2.0
"""Writes the table of a quickstart run into the README.

``python benchmarks/readme_table.py SUMMARY.json MACHINE``, where ``SUMMARY.json`` is what ``make quickstart``
left in its output folder and ``MACHINE`` names the machine in words.
"""

import json
import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def table(summary: dict, machine: str) -> str:
    """The region of the README between its ``quickstart`` marks."""
    accuracy, seconds = summary["accuracy"], summary["seconds"]
    rows = [f"| {name.replace('_', '-')} | {value:.1%} |" for name, value in accuracy.items()]
    stages = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items())
    return "\n".join(
        [
            "| held-out pairs | accuracy |",
            "|---|---|",
            *rows,
            "",
            f"{summary['pairs']:,} pairs; {sum(seconds.values()):.0f} s in all ({stages}) on {machine}.",
        ]
    )


def main() -> None:
    """Rewrite the region."""
    summary, machine = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    region = f"<!-- quickstart -->\n{table(summary, machine)}\n<!-- /quickstart -->"
    text = re.sub(
        r"<!-- quickstart -->.*?<!-- /quickstart -->", lambda _: region, README.read_text(), flags=re.S
    )
    README.write_text(text)


if __name__ == "__main__":
    main()
