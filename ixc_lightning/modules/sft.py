# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning: the start that a reward model and a policy are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Bool
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from ixc_lightning.functional.masking import join
from ixc_lightning.functional.sft import (
    TokenPredictions,
    exact_match,
    predict_tokens,
    predicting_mask,
    sft_loss,
    token_rows,
)
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.sharding import built_for
from ixc_lightning.modules.health import Health, OnNonFinite
from ixc_lightning.modules.optimisation import check_state, gradient_norm, optimise, without_callables
from ixc_lightning.modules.random_state import restore_random_state, save_random_state
from ixc_lightning.modules.ranks import mean_over_ranks
from ixc_lightning.modules.roles import placed
from ixc_lightning.modules.step_count import StepCount
from ixc_lightning.types import MODALITIES, InstructionBatch


class SFTModule(L.LightningModule):
    """Trains a vision-language model on ``InstructionBatch``es to say the reference responses.

    Prompts carry no loss. Frozen is what the model's ``freeze`` says. Logits exist for 1024 response tokens
    at a time, in the backward pass too.

    Logs ``train/loss`` and ``val/loss`` (nats per response token), ``train/gradient_norm`` before clipping,
    ``train/response_tokens_per_step`` over all ranks and accumulated batches (each has the same weight),
    and ``val/exact_match`` with ``val/modality_exact_match/<modality>``: share of the responses all of whose
    tokens are the likeliest ones, each given the true tokens before it.

    Args:
        model: builds the backbone, with its language-model head, when the trainer's devices are known.
        optimizer: over the parameters that are trained.
        scheduler: of the learning rate, stepped with the optimiser.
        on_non_finite: ``raise`` stops where a loss or gradient is not finite, ``skip`` leaves that step out
            and counts it in ``train/skipped_steps``; either way ``non_finite.jsonl`` in the log folder lists
            the samples.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``; other strategies follow the
            trainer's precision.
    """

    model: Backbone | None

    def __init__(
        self,
        model: Callable[[], Backbone],
        *,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        on_non_finite: OnNonFinite = "raise",
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.health = Health(on_non_finite)
        self.counted = StepCount()
        self.compute_dtype = compute_dtype
        self.model = None

    def configure_model(self) -> None:
        """Build the model, once, and shard it where the strategy has a mesh of ranks."""
        if self.model is None:
            mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
            with built_for(mesh):
                self.model = self.build()
            placed(self.model, mesh, compute_dtype=getattr(torch, self.compute_dtype))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimiser over what is not frozen."""
        return optimise(self.parameters(), self.optimizer, self.scheduler)

    def training_step(self, batch: InstructionBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of conversations."""
        # 1 predict the responses
        predictions, response_mask = self.predict_responses(batch)
        # 2 compare, each token of all ranks with the same weight
        counted = token_rows(response_mask, batch.real)
        count = mean_over_ranks(counted.sum(), self.trainer)
        loss = sft_loss(predictions.losses, weights=counted / count)
        self.health.meet(batch.keys, loss.isfinite())
        # 3 log
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.keys))
        return loss * self.counted.share(count)

    def predict_responses(self, batch: InstructionBatch) -> tuple[TokenPredictions, Bool[Tensor, "B L"]]:
        """What the model thinks of the N response tokens, and where they are."""
        assert self.model is not None
        visuals = self.model.encode(batch.prompts)
        sequences = join(batch.prompts, batch.responses)
        hidden = self.model(sequences.ids, sequences.mask, sequences.token_types, visuals)
        states = hidden[predicting_mask(sequences.response_mask)]
        targets = sequences.ids[sequences.response_mask]
        return self.model.read_logits(predict_tokens, states, targets), sequences.response_mask

    def validation_step(self, batch: InstructionBatch, batch_idx: int) -> None:
        """Loss and exact match of one batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: InstructionBatch, batch_idx: int) -> None:
        """Loss and exact match of one batch."""
        self._evaluate("test", batch)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scale the gradient and log its norm, and see to its health."""
        tokens = self.counted.settle(self.parameters(), self.trainer)
        self.log("train/response_tokens_per_step", tokens)
        norm = gradient_norm(self.parameters())
        self.log("train/gradient_norm", norm)
        if not self.health.allows(self.trainer, {"model": norm}):
            optimizer.zero_grad()  # without gradients the step changes nothing
        if self.health.skips:
            self.log("train/skipped_steps", float(self.health.skipped))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep callables out of the file, which must load without unpickling code; add the random state."""
        checkpoint["hyper_parameters"] = without_callables(checkpoint.get("hyper_parameters", {}))
        save_random_state(self.trainer, checkpoint)
        self.health.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, by name, and go on with its random numbers."""
        check_state(self, checkpoint)
        restore_random_state(self._trainer, checkpoint)
        self.health.load(checkpoint)

    def _evaluate(self, phase: str, batch: InstructionBatch) -> None:
        predictions, response_mask = self.predict_responses(batch)
        counted = token_rows(response_mask, batch.real)
        loss = sft_loss(predictions.losses, weights=counted / counted.sum().clamp(min=1))
        self.log(f"{phase}/loss", loss, batch_size=int(counted.sum()), sync_dist=True)
        matches = exact_match(predictions.is_likeliest, response_mask)[batch.real].float()
        if len(matches):
            self.log(f"{phase}/exact_match", matches.mean(), batch_size=len(matches))
        for index, name in enumerate(MODALITIES):
            group = matches[batch.modality[batch.real] == index]
            if len(group):
                self.log(f"{phase}/modality_exact_match/{name}", group.mean(), batch_size=len(group))
