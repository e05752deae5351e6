# SPDX-License-Identifier: Apache-2.0
"""What a run does when a loss or a gradient is not finite: it stops, or leaves the step out and counts it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from ixc_lightning.types import InputError

OnNonFinite = Literal["raise", "skip"]

FILE = "non_finite.jsonl"
KEY = "health"
MOST_IN_A_ROW = 10
"""Steps left out one after the other before the run stops: the weights are the cause by then, no sample."""


class Health:
    """Looks at what each optimiser step is made from, before it is made.

    Every rank calls ``allows`` equally often, and all get the same answer. What was not finite is a line of
    ``non_finite.jsonl`` in the run's log folder: the step, the norms of the gradients, and the keys of the
    samples whose loss was not finite, with their ranks; if only the gradient was not, all keys of the step.

    Args:
        on_non_finite: ``raise`` stops the run; ``skip`` leaves the step out, and stops after
            ``MOST_IN_A_ROW`` of them.
    """

    def __init__(self, on_non_finite: OnNonFinite) -> None:
        self.skips = on_non_finite == "skip"
        self.skipped = self._in_a_row = 0
        self._met: list[tuple[list[str], Bool[Tensor, " B"]]] = []

    def meet(self, keys: Sequence[str], finite: Bool[Tensor, "*B"]) -> None:
        """Remember the samples that the next step is made from.

        Args:
            keys: of B samples.
            finite: whether what was computed of each, or of all in one number, is finite.
        """
        self._met.append((list(keys), finite.detach().expand(len(keys))))

    def allows(self, trainer: L.Trainer, norms: Mapping[str, Float[Tensor, ""]]) -> bool:
        """Whether the step may be made: losses and gradients of all ranks are finite.

        Under ``16-mixed`` gradients overflow as a matter of course, and the scaler deals with them; then the
        losses decide alone.

        Args:
            trainer: tells the ranks, and where the log is.
            norms: of the gradients, by the name of what is trained.

        Raises:
            InputError: they are not, and the run is to stop.
        """
        met, self._met = self._met, []
        watched = [] if trainer.precision == "16-mixed" else [norm.isfinite() for norm in norms.values()]
        good = torch.stack([*watched, *(finite.all() for _, finite in met)]).all()
        if not trainer.strategy.reduce((~good).float(), reduce_op="max"):
            self._in_a_row = 0
            return True
        file = _write(trainer, norms, met)
        self.skipped += 1
        self._in_a_row += 1
        if self.skips and self._in_a_row < MOST_IN_A_ROW:
            return False
        found = ", ".join(f"the gradient of the {name} is {norm.item()}" for name, norm in norms.items())
        raise InputError(
            f"a loss or gradient is not finite: {found} in step {trainer.global_step}, and was not used. The "
            f"samples are listed in {file}: look at them, and in the log at what grew; resume from the "
            f"last checkpoint with a lower learning rate{self._more}"
        )

    @property
    def _more(self) -> str:
        """What else there is to say of the way the run went."""
        if self.skips:
            return f"; {MOST_IN_A_ROW} steps in a row were left out"
        return ", or leave such steps out with on_non_finite: skip"

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put the count of steps left out into a checkpoint."""
        checkpoint[KEY] = {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on counting where a checkpoint stood; one without a count leaves it as it is."""
        if KEY in checkpoint:
            self.skipped, self._in_a_row = checkpoint[KEY]["skipped"], checkpoint[KEY]["in_a_row"]


def _write(
    trainer: L.Trainer,
    norms: Mapping[str, Float[Tensor, ""]],
    met: Sequence[tuple[list[str], Bool[Tensor, " B"]]],
) -> Path:
    """Add a line to the file, by all ranks together, and give its path."""
    own = [(key, fine) for keys, finite in met for key, fine in zip(keys, finite.tolist(), strict=True)]
    ranks = [own]
    if trainer.world_size > 1:
        ranks = [[] for _ in range(trainer.world_size)]
        distributed.all_gather_object(ranks, own)
    samples = [
        {"key": key, "rank": rank} for rank, part in enumerate(ranks) for key, fine in part if not fine
    ]
    line = {
        "step": trainer.global_step,
        "not_finite": "loss" if samples else "gradient",
        "gradient_norm": {name: str(norm.item()) for name, norm in norms.items()},
        "samples": samples
        or [{"key": key, "rank": rank} for rank, part in enumerate(ranks) for key, _ in part],
    }
    file = Path(trainer.log_dir or trainer.default_root_dir) / FILE  # asked by all ranks: the first one tells
    if trainer.is_global_zero:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    return file
