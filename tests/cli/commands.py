# SPDX-License-Identifier: Apache-2.0
"""Command lines that run the packaged recipes on the small digits, in process, for two steps."""

from __future__ import annotations

from pathlib import Path

KINDS = {"sft": "instruction", "reward": "preference"}


def words(verb: str, recipe: str, source: Path | str, digits: Path, logs: Path, *more: str) -> list[str]:
    """The words of a verb with a recipe, its model and data replaced by the small ones."""
    data = digits / KINDS[recipe]
    return [
        *(verb, "--config", f"recipes/{recipe}.yaml"),
        *("--model.model.source", str(source)),
        *("--data.train", str(data / "train")),
        *("--data.val", str(data / "heldout")),
        *("--data.test", str(data / "heldout")),
        *("--data.predict", str(data / "heldout")),
        *("--data.batch_size", "8"),
        *("--data.eval_batch_size", "16"),
        *("--data.num_workers", "0"),
        *("--model.scheduler.warmup_steps", "0"),
        *("--trainer.accelerator", "cpu"),
        *("--trainer.max_steps", "2"),
        *("--trainer.val_check_interval", "2"),
        *("--trainer.num_sanity_val_steps", "0"),
        *("--trainer.logger.save_dir", str(logs)),
        *more,
    ]
