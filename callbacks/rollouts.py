# SPDX-License-Identifier: Apache-2.0
"""What a policy answers to fixed prompts, for a person to look at in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from ixc_lightning.callbacks.rendering import INK, RIGHT, WRONG, Panel, render_panels
from ixc_lightning.types import Answers, InputError, PromptBatch

MAX_SAMPLES = 4
"""Responses shown of one prompt and one way of drawing."""


class Said(NamedTuple):
    """One response, its score, and whether it is right, if that is known."""

    text: str
    score: float
    correct: bool | None


class Shown(NamedTuple):
    """One validation prompt: its name, its answer, and its responses by way of drawing."""

    key: str
    answer: Any
    said: dict[str, list[Said]]


class RolloutExamples(Callback):
    """Shows responses to validation prompts, so that one sees what a policy is rewarded for, in TensorBoard.

    Writes ``val/rollouts`` (a picture of a table: pictures, prompt, the record's answer, and the responses
    with their scores; verified ones in green, refuted ones in red), and the histograms
    ``val/<way>_scores`` of the first rank's responses, where a way of drawing is ``greedy`` or ``sampled``,
    say. Needs a validation step that returns ``Answers`` by that name, and a datamodule with ``example``.
    Does nothing without a ``TensorBoardLogger``.

    Args:
        count: how many prompts, spread evenly over the validation data.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self.shown: list[Shown] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the responses of a validation that did not end."""
        self.shown = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the responses to the batch's real prompts.

        Raises:
            InputError: the validation step does not return responses.
        """
        if not (isinstance(outputs, Mapping) and all(isinstance(one, Answers) for one in outputs.values())):
            raise InputError(
                f"RolloutExamples shows the responses of a policy, but {type(pl_module).__name__} validates "
                "without any: leave the callback out"
            )
        size = len(batch.keys)
        for row in batch.real.nonzero().flatten().tolist():
            said = {name: _said(answers, row, size) for name, answers in outputs.items()}
            self.shown.append(Shown(batch.keys[row], batch.answers[row], said))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table and the histograms of the first rank."""
        shown, self.shown = self.shown, []
        logger = next((one for one in trainer.loggers if isinstance(one, TensorBoardLogger)), None)
        if not shown or logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        board, step = logger.experiment, trainer.global_step
        for name in shown[0].said:
            scores = torch.tensor([said.score for one in shown for said in one.said[name]])
            board.add_histogram(f"val/{name}_scores", scores, step)
        rows = np.unique(np.linspace(0, len(shown) - 1, min(self.count, len(shown))).round().astype(int))
        table = render_panels([_panel(trainer.datamodule, shown[row]) for row in rows])
        board.add_image("val/rollouts", np.asarray(table), step, dataformats="HWC")


def _said(answers: Answers, row: int, size: int) -> list[Said]:
    """All responses to one of the ``size`` prompts of a batch, which lie ``size`` rows apart."""
    scores = answers.scores.tolist()
    correct = [None] * len(scores) if answers.correct is None else answers.correct.tolist()
    every = range(row, len(answers.texts), size)
    return [Said(answers.texts[place], scores[place], correct[place]) for place in every]


def _panel(datamodule: Any, shown: Shown) -> Panel:
    example = datamodule.example("val", shown.key)
    paragraphs = [(example.prompt, INK)]
    if shown.answer is not None:
        paragraphs.append((f"answer: {shown.answer}", INK))
    for name, responses in shown.said.items():
        for said in responses[:MAX_SAMPLES]:
            is_known = shown.answer is not None and said.correct is not None
            colour = (RIGHT if said.correct else WRONG) if is_known else INK
            paragraphs.append((f"{name} {said.score:+.2f}: {said.text}", colour))
    return Panel(example.pictures, paragraphs)
