# SPDX-License-Identifier: Apache-2.0
"""The whole chain on real handwriting, on a laptop CPU in minutes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ixc_lightning.cli.trainer import run_trainer
from ixc_lightning.datamodules.sources.digits import convert
from ixc_lightning.models.tiny import build_tiny
from ixc_lightning.types import MODALITIES, InputError

MARK = ".quickstart"


def quickstart(out: str = "outputs/quickstart", *, seed: int = 0) -> None:
    """Train a reward model on handwritten digits from nothing, and evaluate it on held-out handwriting.

    Writes preference and instruction shards, a tiny vision-language model, its fine-tuned start, the reward
    model, all as Hugging Face folders, TensorBoard logs, and ``summary.json`` with the held-out accuracies;
    prints them as a table.

    Args:
        out: folder for everything. What an earlier quickstart left there is removed, so that every figure
            comes from this run; any other folder that is not empty is refused.
        seed: of data, weights and order.
    """
    folder = Path(out)
    _clear(folder)
    paths = {name: str(folder / name) for name in ("digits", "tiny", "sft", "reward")}
    seconds: dict[str, float] = {}

    with timed(seconds, "data", "writing shards of handwritten digits"):
        convert(paths["digits"], prompts=1000, seed=seed)  # prompts are for reinforcement learning
    with timed(seconds, "sft", "fine-tuning a tiny vision-language model"):
        build_tiny(paths["tiny"], seed=seed)
        fit("sft", "instruction", start=paths["tiny"], export=paths["sft"], folder=folder, seed=seed)
    with timed(seconds, "reward", "training the reward model"):
        fit("reward", "preference", start=paths["sft"], export=paths["reward"], folder=folder, seed=seed)
    with timed(seconds, "test", "evaluating the exported model on held-out images"):
        accuracy, pairs = evaluate(paths["reward"], folder)

    summary = {"accuracy": accuracy, "pairs": pairs, "seconds": seconds, "paths": paths}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Console().print(accuracy_table(accuracy, sum(seconds.values())))
    print(f"TensorBoard: tensorboard --logdir {folder / 'logs'}\nSummary: {folder / 'summary.json'}")


def fit(recipe: str, kind: str, *, start: str, export: str, folder: Path, seed: int) -> None:
    """Run one recipe with the quickstart's own start, shards and folders."""
    data = folder / "digits" / kind
    run_trainer(
        [
            *("fit", "--config", f"recipes/{recipe}.yaml"),
            *("--seed_everything", str(seed)),
            *("--model.model.source", start),
            *("--data.train", str(data / "train")),
            *("--data.val", str(data / "heldout")),
            *("--data.test", "null"),
            *("--trainer.logger.save_dir", str(folder / "logs")),
            *("--export.folder", export),
        ]
    )


def evaluate(model: str, folder: Path) -> tuple[dict[str, float], int]:
    """Accuracy of an exported reward model on the held-out pairs, by modality too, and how many they are."""
    run = run_trainer(
        [
            *("test", "--config", "recipes/reward.yaml"),
            *("--model.model.source", model),
            *("--data.train", "null"),
            *("--data.val", "null"),
            *("--data.test", str(folder / "digits" / "preference" / "heldout")),
            *("--trainer.logger.save_dir", str(folder / "logs")),
        ]
    )
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    accuracy = {"overall": metrics["test/accuracy"]}
    accuracy |= {name: metrics[f"test/modality_accuracy/{name}"] for name in MODALITIES}
    return accuracy, len(run.datamodule.dataset("test"))


def accuracy_table(accuracy: dict[str, float], seconds: float) -> Table:
    """The result as a person reads it."""
    table = Table(title="Held-out pair accuracy of the reward model", caption=f"{seconds:.0f} seconds in all")
    table.add_column("modality")
    table.add_column("accuracy", justify="right")
    for name, value in accuracy.items():
        table.add_row(name.replace("_", "-"), f"{value:.1%}", style="bold" if name == "overall" else "")
    return table


def _clear(folder: Path) -> None:
    """Make the folder, empty, and mark it as a quickstart's."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise InputError(f"{folder} is not empty and no quickstart's: give another folder as --out")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("ixc_lightning quickstart: the next one to this folder removes it\n")


@contextmanager
def timed(seconds: dict[str, float], name: str, what: str) -> Iterator[None]:
    """Say what begins, and note how long it took."""
    Console().rule(f"[bold]{len(seconds) + 1}. {what}")
    begin = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begin, 1)
