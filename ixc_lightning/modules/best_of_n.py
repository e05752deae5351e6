# SPDX-License-Identifier: Apache-2.0
"""Best of N: a policy answers each prompt several times, and the reward model says which answer to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from ixc_lightning.functional.best_of_n import expected_best_of_n
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.scoring import check_suffix
from ixc_lightning.models.sharding import built_for
from ixc_lightning.modules.experience import filled
from ixc_lightning.modules.pictures import Pictures, Seeing, shared_eyes
from ixc_lightning.modules.reading import score_in_parts
from ixc_lightning.modules.roles import check_speaks, frozen, placed
from ixc_lightning.modules.sources import Rule
from ixc_lightning.processors import load_processor
from ixc_lightning.rollout import (
    Engine,
    Sampling,
    TransformersEngine,
    check_same_tokenizer,
    rollout_seed,
    stop_tokens,
    texts,
)
from ixc_lightning.types import MODALITIES, InputError, PromptBatch, Rollout


class BestOfNModule(L.LightningModule):
    """Answers ``PromptBatch``es ``sampling.n`` times in ``predict``, and scores every answer.

    InternLM-XComposer2.5-Reward, §5.2 and Table 8 (arXiv 2501.12368). A prompt and its pictures are encoded
    once for all its answers, and for both networks where their towers are the same. Samples of one prompt are
    independent draws; a seed of its own fixes those of each rank and batch.

    Args:
        policy: builds the policy with its language head.
        reward_model: builds the judge from the folder of a trained one.
        sampling: how answers are drawn; stop tokens of the chat template are added.
        correctness: scores above 0 where an answer is right; it has no say in what is kept.
        reward_suffix: text behind every answer where the reward model reads it, such as its reward token.
        engine: what answers; null is ``TransformersEngine``.
        rows_at_once: answers per rank and forward pass of the reward model.
        seed: fixes the draws.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``; other strategies follow the
            trainer's precision.
    """

    policy: Backbone | None
    reward_model: RewardModel | None

    def __init__(
        self,
        policy: Callable[[], Backbone],
        reward_model: Callable[[], RewardModel],
        *,
        sampling: Sampling,
        correctness: Rule | None = None,
        reward_suffix: str = "",
        engine: Engine | None = None,
        rows_at_once: int = 64,
        seed: int = 0,
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        if rows_at_once < 1:
            raise InputError(f"model.rows_at_once is {rows_at_once}, but must be at least 1")
        self.build_policy, self.build_reward_model = policy, reward_model
        self.sampling = sampling
        self.correctness = correctness
        self.reward_suffix = reward_suffix
        self.engine = engine or TransformersEngine()
        self.rows_at_once = rows_at_once
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.policy = self.reward_model = None
        self.eyes: dict[str, str] | None = None

    @property
    def processor(self) -> Any:
        """Of the datamodule, and so of the policy."""
        return self.trainer.datamodule.encoder.processor

    def configure_model(self) -> None:
        """Build both networks, once, and shard them where the strategy has a mesh of ranks."""
        if self.policy is None:
            mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
            dtype = getattr(torch, self.compute_dtype)
            with built_for(mesh):
                policy, judge = self.build_policy(), self.build_reward_model()
            check_speaks(policy, "policy")
            self.policy = placed(frozen(policy), mesh, compute_dtype=dtype)
            self.reward_model = placed(frozen(judge), mesh, compute_dtype=dtype)

    def on_predict_start(self) -> None:
        """Make sure that the reward model reads the policy's tokens and pictures as they are.

        Raises:
            InputError: it has another tokenizer, template or picture processor, or reads a token that no
                answer holds.
        """
        assert self.reward_model is not None
        own = load_processor(self.reward_model.backbone.config._name_or_path)
        check_same_tokenizer(self.processor, own, role="reward model")
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.suffix = tokenizer(self.reward_suffix, add_special_tokens=False)["input_ids"]
        check_suffix(self.reward_model, self.suffix, setting="reward_suffix")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The answers to one batch with their scores.

        Returns:
            For each of this rank's prompts an entry with ``row``, ``key``, ``domain``, ``modality``,
            ``answer`` (the record's), ``best`` (number of the candidate to keep: the first of the highest
            score) and ``candidates``, each of which has ``response``, ``score``, ``normalised_score``,
            ``tokens`` (the stop token included), ``ended`` and ``correct`` (null where nothing verified it).
        """
        # 1 look at each picture once
        pictures = self.look(batch)
        # 2 answer each prompt n times
        rollout = self.roll_out(batch, pictures, batch_idx)
        # 3 score all answers
        scores = self.score(rollout, pictures)
        # 4 keep the best
        return self.entries(batch, batch_idx, rollout, scores)

    def look(self, batch: PromptBatch) -> Pictures:
        """The batch's pictures, for both networks."""
        assert self.policy is not None
        assert self.reward_model is not None
        roles: dict[str, Seeing] = {"policy": self.policy, "reward_model": self.reward_model}
        if self.eyes is None:
            self.eyes = shared_eyes(roles)
        return Pictures(batch.prompts, roles, self.eyes)

    def roll_out(self, batch: PromptBatch, pictures: Pictures, batch_idx: int) -> Rollout:
        """Answers of the policy, as many rows on every rank: sharded networks are called equally often."""
        assert self.policy is not None
        stops = (*self.sampling.stop_tokens, *stop_tokens(self.processor))
        rollout = self.engine.generate(
            self.policy,
            batch,
            pictures.all("policy"),
            replace(self.sampling, stop_tokens=stops),
            seed=rollout_seed(self.seed, rank=self.global_rank, iteration=batch_idx),
        )
        rows = torch.tensor(len(rollout.ended), device=self.device)
        return filled(rollout, int(self.trainer.strategy.reduce(rows, reduce_op="max")))

    def score(self, rollout: Rollout, pictures: Pictures) -> Float[Tensor, " R"]:
        """The reward model's scores of all answers, as it gives them.

        Raises:
            InputError: one is no number.
        """
        assert self.reward_model is not None
        scores = score_in_parts(
            self.reward_model, rollout, pictures, size=self.rows_at_once, suffix=self.suffix
        )
        if not scores.isfinite().all():
            key = rollout.keys[int((~scores.isfinite()).nonzero()[0])]
            raise InputError(
                f"{key}: the score of an answer is no number; "
                "compute in float32 or bfloat16 (trainer.precision), or look at the reward model's weights"
            )
        return scores

    def entries(
        self, batch: PromptBatch, batch_idx: int, rollout: Rollout, scores: Float[Tensor, " R"]
    ) -> list[dict[str, Any]]:
        """What ``predict_step`` returns."""
        assert self.reward_model is not None
        said = texts(rollout, self.processor)
        columns = {
            "response": said,
            "score": scores.tolist(),
            "normalised_score": self.reward_model.normalise(scores).tolist(),
            "tokens": rollout.lengths.tolist(),
            "ended": rollout.ended.tolist(),
            "correct": self.correct(said, rollout),
        }
        datamodule, size = self.trainer.datamodule, len(batch.keys)
        entries = []
        for place, row in enumerate(datamodule.predicted_rows(batch, batch_idx)):
            answers = range(place, size * self.sampling.n, size)
            candidates = [{name: column[one] for name, column in columns.items()} for one in answers]
            entries.append(
                {
                    "row": row,
                    "key": batch.keys[place],
                    "domain": datamodule.domains[int(batch.domain[place])],
                    "modality": MODALITIES[int(batch.modality[place])],
                    "answer": batch.answers[place],
                    "best": max(range(len(candidates)), key=lambda n: candidates[n]["score"]),
                    "candidates": candidates,
                }
            )
        return entries

    def correct(self, said: list[str], rollout: Rollout) -> list[bool | None]:
        """Whether each answer is right; None where nothing can say so."""
        if self.correctness is None:
            return [None] * len(said)
        right = (self.correctness(said, rollout) > 0).tolist()
        return [one if known else None for one, known in zip(right, rollout.has_answer.tolist(), strict=True)]

    def curve(self, entries: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
        """What can be expected of the best of n: ``best_of_n_curve`` of all ranks' entries."""
        return best_of_n_curve(entries)


def best_of_n_curve(entries: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """The expected quantities of the best of n, means over prompts, for every n.

    Quantities are ``score``, ``tokens``, and, if it is known of some prompts, ``correct``, of these alone.

    Raises:
        InputError: there are no entries.
    """
    columns: dict[str, list[list[float]]] = {name: [] for name in ("score", "tokens", "correct")}
    judged: list[list[float]] = []  # scores of the prompts that have an answer
    for entry in entries:
        candidates = entry["candidates"]
        scores = [one["score"] for one in candidates]
        columns["score"].append(scores)
        columns["tokens"].append([one["tokens"] for one in candidates])
        if all(one["correct"] is not None for one in candidates):
            columns["correct"].append([one["correct"] for one in candidates])
            judged.append(scores)
    if not columns["score"]:
        raise InputError("no prompt was answered, so there is no best of n: look at data.predict")
    ranked = {"score": columns["score"], "tokens": columns["score"], "correct": judged}
    return {
        name: expected_best_of_n(
            torch.tensor(ranked[name], dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
        )
        .mean(dim=0)
        .tolist()
        for name, values in columns.items()
        if values
    }
