# SPDX-License-Identifier: Apache-2.0
"""The paper's Table 7 in small: what a length filter on a reward model's data does to a policy's answers.

``python benchmarks/length_bias.py OUT [--seeds 0 1] [--iterations 60]`` trains a reward model by
``recipes/length_filter.yaml`` on pairs whose right answers are long in half of the cases, one with the filter
and one without. Then PPO trains the same policy against each, with nothing but the score to go by. Printed is
a Markdown table of the held-out answers: the mean over seeds, with half the range of the seeds behind it; and
``OUT/length_bias.png`` gets the mean length over the iterations. What is in OUT already is not made again.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from ixc_lightning.callbacks.curves import draw_curves

COLUMNS = {
    "sampled_length": "tokens, drawn",
    "greedy_length": "tokens, greedy",
    "sampled_correct": "correct, drawn",
    "greedy_correct": "correct, greedy",
}
WAYS = {"with the filter": (), "without it": ("--data.filters", "null")}


def run(folder: Path, *words: str) -> list[dict[str, str]]:
    """The lines of the log of a run, made now or before."""
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "ixc_lightning", *words),
            *("--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger"),
            *("--trainer.logger.save_dir", str(folder), "--trainer.logger.name", "log"),
            *("--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"),
        ]
        with (folder / "output.txt").open("w") as output:
            subprocess.run(command, stdout=output, stderr=output, check=True)
        done.touch()
    log = max(folder.glob("log/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with log.open() as stream:
        return list(csv.DictReader(stream))


def policy(folder: Path, judge: Path, *, seed: int, iterations: int) -> list[dict[str, str]]:
    """The log of a policy that was trained against a reward model, by its score alone."""
    return run(
        folder,
        *("fit", "--config", "recipes/ppo.yaml", "--model.verifiers", "null"),
        *("--model.reward_model.source", str(judge), "--model.critic.source", str(judge)),
        *("--trainer.max_steps", str(iterations), "--trainer.val_check_interval", str(iterations)),
        *("--seed_everything", str(seed), "--model.seed", str(seed), "--data.seed", str(seed)),
    )


def cell(values: list[float]) -> str:
    """The mean, and half the range where there are several values."""
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2f}{spread}"


def main() -> None:
    """Train what is not there yet, print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--iterations", type=int, default=60)
    options = parser.parse_args()

    rows, curves = {}, {}
    for way, more in WAYS.items():
        folder = options.out / way.split()[0]
        judge = folder / "model"
        log = run(
            folder / "reward",
            *("fit", "--config", "recipes/length_filter.yaml", "--export.folder", str(judge), *more),
        )
        accuracy = float([line for line in log if line.get("val/accuracy")][-1]["val/accuracy"])
        logs = [
            policy(folder / f"ppo-{seed}", judge, seed=seed, iterations=options.iterations)
            for seed in options.seeds
        ]
        last = [[line for line in log if line.get("val/sampled_length")][-1] for log in logs]
        rows[way] = [cell([accuracy])] + [
            cell([float(line[f"val/{name}"]) for line in last]) for name in COLUMNS
        ]
        lengths = [[float(line["train/length"]) for line in log if line.get("train/length")] for log in logs]
        curves[f"tokens, {way}"] = [sum(step) / len(step) for step in zip(*lengths, strict=True)]
    print("| reward model | held-out accuracy | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for way, cells in rows.items():
        print(f"| {way} | " + " | ".join(cells) + " |")
    draw_curves(curves, x_name="iteration").save(options.out / "length_bias.png")


if __name__ == "__main__":
    main()
