# SPDX-License-Identifier: Apache-2.0
"""Scoring of responses with a trained reward model."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.scoring import check_suffix, score_responses
from ixc_lightning.models.sharding import built_for
from ixc_lightning.modules.roles import frozen, placed
from ixc_lightning.types import MODALITIES, CandidateBatch, InputError


class ScoringModule(L.LightningModule):
    """Scores ``CandidateBatch``es in ``predict``; each picture is encoded once for all responses to it.

    Args:
        model: builds the reward model, from the folder of a trained one.
        rows_at_once: most responses of one forward pass.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``; other strategies follow the
            trainer's precision.
    """

    model: RewardModel | None

    def __init__(
        self,
        model: Callable[[], RewardModel],
        *,
        rows_at_once: int = 64,
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        if rows_at_once < 1:
            raise InputError(f"model.rows_at_once is {rows_at_once}, but must be at least 1")
        self.build = model
        self.rows_at_once = rows_at_once
        self.compute_dtype = compute_dtype
        self.model = None

    def configure_model(self) -> None:
        """Build the model, once, and shard it where the strategy has a mesh of ranks."""
        if self.model is None:
            mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
            with built_for(mesh):
                model = frozen(self.build())
            self.model = placed(model, mesh, compute_dtype=getattr(torch, self.compute_dtype))

    def on_predict_start(self) -> None:
        """Make sure that the model reads what the datamodule writes.

        Raises:
            InputError: the model reads a reward token that no response ends with.
        """
        assert self.model is not None
        encoder = self.trainer.datamodule.encoder
        suffix = encoder.tokenizer(encoder.response_suffix, add_special_tokens=False)["input_ids"]
        check_suffix(self.model, suffix)

    def predict_step(self, batch: CandidateBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The scores of one batch, an entry for each of this rank's records in their order.

        Returns:
            Entries with ``row``, ``shard``, ``key``, and either ``domain``, ``modality`` and ``responses``,
            each of which has ``name``, ``tokens``, ``score`` and ``normalised_score``; or ``error``.
        """
        assert self.model is not None
        scores = self.score(batch)
        normalised = self.model.normalise(scores).tolist()
        tokens = batch.responses.mask.sum(dim=1).tolist()
        entries: list[dict[str, Any]] = [
            {"row": row, "shard": shard, "key": key, "error": reason} for row, key, shard, reason in batch.bad
        ]
        for place, row in enumerate(batch.rows):
            if not batch.real[place]:
                continue
            own = (batch.prompt_index == place).nonzero().flatten().tolist()
            entries.append(
                {
                    "row": row,
                    "shard": batch.shards[place],
                    "key": batch.keys[place],
                    "domain": batch.domain[place],
                    "modality": MODALITIES[batch.modality[place]],
                    "responses": [
                        {
                            "name": batch.names[n],
                            "tokens": tokens[n],
                            "score": scores[n].item(),
                            "normalised_score": normalised[n],
                        }
                        for n in own
                    ],
                }
            )
        return sorted(entries, key=lambda entry: entry["row"])

    def score(self, batch: CandidateBatch) -> Float[Tensor, " R"]:
        """The scores of one batch as the model gives them.

        Raises:
            InputError: one is no number.
        """
        assert self.model is not None
        passes = torch.tensor(-(-len(batch.names) // self.rows_at_once), device=self.device)
        scores = score_responses(
            self.model,
            batch.prompts,
            batch.responses,
            batch.prompt_index,
            size=self.rows_at_once,
            passes=int(self.trainer.strategy.reduce(passes, reduce_op="max")),
        )
        if not scores.isfinite().all():
            place = int(batch.prompt_index[~scores.isfinite()][0])
            raise InputError(
                f"{batch.shards[place]}:{batch.keys[place]}: the score is no number; compute in float32 or "
                "bfloat16 (trainer.precision), or look at the model's weights"
            )
        return scores

    def fingerprint(self) -> str:
        """What differs when another model scores; all ranks must ask together."""
        assert self.model is not None
        head = self.model.score.weight.detach()
        head = head.full_tensor() if isinstance(head, DTensor) else head
        statistics = torch.stack([self.model.score_mean, self.model.score_std])
        numbers = torch.cat([head.flatten(), statistics]).double().cpu().numpy().tobytes()
        return blake2b(numbers + self.model.pooling.encode(), digest_size=16).hexdigest()
