# SPDX-License-Identifier: Apache-2.0
"""Training of a reward model on preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from ixc_lightning.functional.packing import pairs
from ixc_lightning.functional.preference import centre_penalty, is_correct, pairwise_loss
from ixc_lightning.metrics import PreferenceStatistics
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.sharding import built_for
from ixc_lightning.modules.health import Health, OnNonFinite
from ixc_lightning.modules.optimisation import check_state, gradient_norm, optimise, without_callables
from ixc_lightning.modules.random_state import restore_random_state, save_random_state
from ixc_lightning.modules.ranks import mean_over_ranks
from ixc_lightning.modules.roles import placed
from ixc_lightning.modules.step_count import StepCount
from ixc_lightning.types import InputError, PreferenceBatch


class RewardModule(L.LightningModule):
    """Trains a reward model on ``PreferenceBatch``es by the pairwise loss.

    InternLM-XComposer2.5-Reward, §3 and Eq. 1 (arXiv 2501.12368). Frozen is what the model's ``freeze`` says.
    Each picture is encoded once for both responses, and each prompt read once where the model ``shares``.

    Logs, for ``phase`` in ``train``, ``val`` and ``test``: ``phase/loss`` (nats; log 2 at the start, falling)
    and every name of ``PreferenceStatistics`` (``phase/accuracy``, ``phase/margin``, …; a
    ``length_correlation`` near that of the data is healthy). In training the statistics cover all pairs since
    they were last logged. Besides ``train/gradient_norm``, before clipping, and ``train/pairs_per_step``,
    over all ranks and accumulated batches: all pairs weigh the same, however the batches differ in size.

    After every validation the mean and standard deviation of its scores are stored in the model, for later
    normalisation.

    Args:
        model: builds the reward model, when the trainer's devices are known.
        optimizer: over the parameters that are trained.
        scheduler: of the learning rate, stepped with the optimiser.
        label_smoothing: share of the preferences taken to be wrong, in [0, 0.5).
        centre_coef: multiplier of the penalty that keeps the scores around 0.
        on_non_finite: ``raise`` stops where a loss or gradient is not finite, ``skip`` leaves that step out
            and counts it in ``train/skipped_steps``; either way ``non_finite.jsonl`` in the log folder lists
            the samples.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``; other strategies follow the
            trainer's precision.
    """

    model: RewardModel | None

    def __init__(
        self,
        model: Callable[[], RewardModel],
        *,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        centre_coef: float = 0.0,
        on_non_finite: OnNonFinite = "raise",
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.centre_coef = centre_coef
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

    def setup(self, stage: str) -> None:
        """Make the statistics of each phase, by the datamodule's names of domains."""
        domains = self.trainer.datamodule.domains
        self.statistics = {
            phase: PreferenceStatistics(domains).to(self.device) for phase in ("train", "val", "test")
        }

    def on_fit_start(self) -> None:
        """Refuse a budget of tokens that counts shared prompts once, if the network cannot share them."""
        data = self.trainer.datamodule
        if getattr(data, "token_budget", None) and data.sharing == "auto" and not self.model.shares:
            raise InputError(
                "data.token_budget counts each prompt once, but the model reads it with both responses, so a "
                "batch would hold twice as much and its padding: set data.sharing to off"
            )

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of pairs."""
        # 1 score both responses of each pair
        chosen, rejected = self.score(batch)
        # 2 prefer the chosen ones
        count = mean_over_ranks(batch.real.sum(), self.trainer)
        weights = batch.real / count
        loss = self.loss(batch, chosen, rejected, weights)
        self.health.meet(batch.keys, chosen.isfinite() & rejected.isfinite())
        # 3 log
        accuracy = torch.dot(is_correct(chosen, rejected).float(), weights)
        self.log_dict(
            {"train/loss": loss, "train/accuracy_step": accuracy}, prog_bar=True, batch_size=len(batch.keys)
        )
        self._count("train", batch, chosen, rejected)
        return loss * self.counted.share(count)

    def score(self, batch: PreferenceBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Scores of the chosen and of the rejected responses; each picture is encoded once for both."""
        assert self.model is not None
        visuals = self.model.encode(batch.prompts)
        chosen, rejected = self.model(pairs(batch.prompts, batch.chosen, batch.rejected), visuals).chunk(2)
        return chosen, rejected

    def loss(
        self,
        batch: PreferenceBatch,
        chosen: Float[Tensor, " B"],
        rejected: Float[Tensor, " B"],
        weights: Float[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        """The pairwise loss, and the penalty on scores far from 0 if it is asked for."""
        loss = pairwise_loss(
            chosen,
            rejected,
            margin=batch.margin,
            label_smoothing=self.label_smoothing,
            weights=weights,
        )
        return torch.add(loss, centre_penalty(chosen, rejected, weights=weights), alpha=self.centre_coef)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Scores of one batch, for callbacks too."""
        return self._evaluate("val", batch)

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Scores of one batch, for callbacks too."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Scores of one batch, with the keys of its records; rows that are not real are to be left out."""
        chosen, rejected = self.score(batch)
        return {"keys": batch.keys, "chosen": chosen, "rejected": rejected, "real": batch.real}

    def on_validation_epoch_end(self) -> None:
        """Log the statistics, and store the moments of the scores with the model."""
        values = self._log_statistics("val")
        if not self.trainer.sanity_checking:
            self.model.store_statistics(values["score_mean"], values["score_std"])

    def on_test_epoch_end(self) -> None:
        """Log the statistics."""
        self._log_statistics("test")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Scale and log the gradient, and log the statistics when it is their turn; see to its health."""
        self.log("train/pairs_per_step", self.counted.settle(self.parameters(), self.trainer))
        norm = gradient_norm(self.parameters())
        self.log("train/gradient_norm", norm)
        if not self.health.allows(self.trainer, {"model": norm}):
            optimizer.zero_grad()  # without gradients the step changes nothing
        if self.health.skips:
            self.log("train/skipped_steps", float(self.health.skipped))
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self._log_statistics("train")

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

    def _evaluate(self, phase: str, batch: PreferenceBatch) -> dict[str, Tensor]:
        chosen, rejected = self.score(batch)
        count = batch.real.sum()
        loss = self.loss(batch, chosen, rejected, batch.real / count.clamp(min=1))
        self.log(f"{phase}/loss", loss, batch_size=int(count), sync_dist=True)
        self._count(phase, batch, chosen, rejected)
        return {"chosen": chosen, "rejected": rejected}

    def _count(self, phase: str, batch: PreferenceBatch, chosen: Tensor, rejected: Tensor) -> None:
        lengths = batch.chosen.mask.sum(dim=1), batch.rejected.mask.sum(dim=1)
        self.statistics[phase].update(chosen, rejected, *lengths, batch.domain, batch.modality, batch.real)

    def _log_statistics(self, phase: str) -> dict[str, Tensor | float]:
        values = self.statistics[phase].compute()
        self.statistics[phase].reset()
        self.log_dict({f"{phase}/{name}": value for name, value in values.items()}, rank_zero_only=True)
        return values
