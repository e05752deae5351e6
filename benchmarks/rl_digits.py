# SPDX-License-Identifier: Apache-2.0
"""Whether reinforcement learning helps: held-out score and correctness, before and after, over seeds.

``python benchmarks/rl_digits.py OUT [--recipes ppo rloo grpo] [--seeds 0 1 2] [--iterations 100]`` validates
the fine-tuned policy on all held-out prompts, trains by each recipe with each seed, and validates again. It
prints a Markdown table: the mean over seeds, with half the range of the seeds behind it. Runs that are in OUT
already are not made again, so that a sweep that was stopped goes on.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

COLUMNS = {
    "greedy_score": "score, greedy",
    "sampled_score": "score, drawn",
    "greedy_correct": "correct, greedy",
    "sampled_correct": "correct, drawn",
    "sampled_length": "tokens, drawn",
}


def run(folder: Path, verb: str, recipe: str, *more: str) -> dict[str, float]:
    """What a run logged last about the held-out prompts, of a run made now or before."""
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "ixc_lightning", verb, "--config", f"recipes/{recipe}.yaml"),
            *("--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger"),
            *("--trainer.logger.save_dir", str(folder), "--trainer.logger.name", "log"),
            *("--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"),
            *("--trainer.limit_val_batches", "1.0"),
            *more,
        ]
        with (folder / "output.txt").open("w") as output:
            subprocess.run(command, stdout=output, stderr=output, check=True, env=dict(os.environ))
        done.touch()
    log = max(folder.glob("log/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with log.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/greedy_score")]
    return {name: float(rows[-1][f"val/{name}"]) for name in COLUMNS}


def cell(values: list[float]) -> str:
    """The mean, and half the range where there are several values."""
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["ppo", "rloo", "grpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()

    results = {"fine-tuned": [run(options.out / "start", "validate", options.recipes[0])]}
    length = str(options.iterations)
    for recipe in options.recipes:
        results[recipe.upper()] = [
            run(
                options.out / f"{recipe}-{seed}",
                "fit",
                recipe,
                *("--trainer.max_steps", length, "--trainer.val_check_interval", length),
                *("--seed_everything", str(seed), "--model.seed", str(seed), "--data.seed", str(seed)),
            )
            for seed in options.seeds
        ]
    print("| policy | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for name, runs in results.items():
        cells = [cell([result[column] for result in runs]) for column in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
