# SPDX-License-Identifier: Apache-2.0
"""What a policy answers to fixed validation prompts, on a scale that does not move."""

from __future__ import annotations

from dataclasses import replace

import torch

from ixc_lightning.modules.collecting import Collecting
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.modules.sources import Rule
from ixc_lightning.modules.tally import Tally
from ixc_lightning.rollout import Sampling, texts
from ixc_lightning.types import Answers, PromptBatch


class Evaluating(Collecting):
    """Validation. ``OnPolicyModule`` says what the attributes are, and sets them."""

    correctness: Rule | None

    def on_validation_start(self) -> None:
        """Make sure, where nothing is trained, that the reward model can read what the policy says."""
        if not self.trainer.training and not self.trainer.sanity_checking:
            self.check_readers()

    def on_validation_epoch_start(self) -> None:
        """Count afresh."""
        self.validation = Tally()

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Answers]:
        """Answers to fixed prompts, the likeliest ones and drawn ones, for callbacks too."""
        pictures = self.look(batch)
        ways = {"greedy": replace(self.sampling, n=1, greedy=True), "sampled": replace(self.sampling, n=1)}
        return {name: self.evaluate(name, way, batch, batch_idx, pictures) for name, way in ways.items()}

    @torch.no_grad()
    def evaluate(
        self, name: str, sampling: Sampling, batch: PromptBatch, batch_idx: int, pictures: Pictures
    ) -> Answers:
        """Answers to a batch, scored on a scale that does not move, and checked."""
        rollout = self.roll_out(batch, pictures, sampling, iteration=batch_idx)
        said = texts(rollout, self.processor)
        if self.reward_model is not None:
            scores = self.reward_model.normalise(self.opinion(rollout, pictures))
        else:
            scores = sum(source.weight * source.verifier(said, rollout) for source in self.verifiers)
        self.validation.add_all(f"{name}_score", scores, rollout.real & scores.isfinite())
        self.validation.add_all(f"{name}_length", rollout.lengths, rollout.real)
        correct = None
        if self.correctness is not None:
            correct = self.correctness(said, rollout) > 0
            self.validation.add_all(f"{name}_correct", correct, rollout.real & rollout.has_answer)
        own = len(batch.keys)
        return Answers(said[:own], scores[:own], None if correct is None else correct[:own])

    def on_validation_epoch_end(self) -> None:
        """Log the means over the answers of all ranks."""
        means = self.validation.known_means(self.reduce)
        if self.reencoding is not None:
            means |= self.reencoding.counted(self.reduce)
        self.log_dict({f"val/{name}": mean for name, mean in means.items()}, sync_dist=True)
