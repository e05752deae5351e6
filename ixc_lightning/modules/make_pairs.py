# SPDX-License-Identifier: Apache-2.0
"""Making pairs: a policy answers each prompt several times, and a judge says which answers are better."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import Any, Literal

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from ixc_lightning.functional.pairs import choose_pairs
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.sharding import built_for
from ixc_lightning.modules.roles import check_speaks, frozen, placed
from ixc_lightning.rollout import (
    Engine,
    Sampling,
    TransformersEngine,
    rollout_seed,
    stack_rollout,
    stop_tokens,
    texts,
)
from ixc_lightning.rollout.judge import Contest, Judge
from ixc_lightning.types import MODALITIES, InputError, PromptBatch, Rollout

REFERENCE, SAMPLE = "reference", "sample"
"""Where a candidate comes from."""
UNUSABLE = "responses that are empty or were cut off"
TOO_LONG = "pairs whose chosen response is too long"
TOO_SHORT = "pairs whose chosen response is too short"


class MakePairsModule(L.LightningModule):
    """Answers ``PromptBatch``es ``sampling.n`` times in ``predict``; a judge makes preference pairs of it.

    InternLM-XComposer2.5-Reward, §3.1 (arXiv 2501.12368): samples of a policy are compared with each other,
    and, of instruction records, with the answer of the record. A prompt and its pictures are encoded once
    for all its answers.

    Args:
        policy: builds the policy with its language head.
        sampling: how answers are drawn; stop tokens of the chat template are added.
        judge: says which answers are better: ``VerifierJudge`` or ``PairwiseJudge``.
        pairs_per_prompt: most pairs of one prompt.
        prefer: which of several possible pairs: ``gap`` the best against the worst answer, ``random`` any.
        max_length_ratio: largest length in tokens of chosen over rejected; null is any.
        min_length_ratio: smallest one; null is any.
        engine: what answers; null is ``TransformersEngine``.
        seed: fixes the draws, and what the judge and the choice leave to chance.
        compute_dtype: of sharded computation, under ``ModelParallelStrategy``; other strategies follow the
            trainer's precision.

    Raises:
        InputError: ``pairs_per_prompt`` is not positive, or no length ratio is allowed.
    """

    policy: Backbone | None

    def __init__(
        self,
        policy: Callable[[], Backbone],
        *,
        sampling: Sampling,
        judge: Judge,
        pairs_per_prompt: int = 1,
        prefer: Literal["gap", "random"] = "gap",
        max_length_ratio: float | None = None,
        min_length_ratio: float | None = None,
        engine: Engine | None = None,
        seed: int = 0,
        compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        self.build_policy = policy
        self.sampling = sampling
        self.judge = judge
        self.choice: dict[str, Any] = {
            "count": pairs_per_prompt,
            "prefer": prefer,
            "max_length_ratio": max_length_ratio,
            "min_length_ratio": min_length_ratio,
        }
        try:
            choose_pairs([], [], **self.choice)
        except ValueError as error:
            raise InputError(f"model.pairs_per_prompt, or a length ratio of model: {error}") from error
        self.engine = engine or TransformersEngine()
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.policy = None

    @property
    def processor(self) -> Any:
        """Of the datamodule, and so of the policy."""
        return self.trainer.datamodule.encoder.processor

    def configure_model(self) -> None:
        """Build the policy, once, and shard it where the strategy has a mesh of ranks."""
        if self.policy is None:
            mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
            with built_for(mesh):
                policy = self.build_policy()
            check_speaks(policy, "policy")
            self.policy = placed(frozen(policy), mesh, compute_dtype=getattr(torch, self.compute_dtype))

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The answers to one batch, an entry for each of this rank's records in their order.

        Returns:
            Entries with ``row``, and either ``key``, ``domain``, ``modality``, ``seed`` and ``candidates``,
            each of which has ``response``, ``from`` (``sample`` or ``reference``), ``tokens`` (the stop token
            included), ``ended`` and ``score`` (null where the judge compares); or ``error``.
        """
        rows, bad = self.trainer.datamodule.rows(batch, batch_idx)
        reasons = [reason for *_, reason in batch.bad]
        entries: list[dict[str, Any]] = [
            {"row": row, "error": reason} for row, reason in zip(bad, reasons, strict=True)
        ]
        # The first record names the draws: no other batch of any rank or resumed run has it.
        seed = rollout_seed(self.seed, rank=0, iteration=min(rows + bad, default=-1 - self.global_rank))
        # 1 answer each prompt n times, its pictures encoded once
        rollout = self.roll_out(batch, seed)
        # 2 let the judge score them, if it can
        samples = self.candidates(rollout, texts(rollout, self.processor), SAMPLE)
        # 3 add the answers that came with the records
        references = self.references(batch, rows)
        for place, row in enumerate(rows):
            entries.append(
                {
                    "row": row,
                    "key": batch.keys[place],
                    "domain": self.trainer.datamodule.domains[int(batch.domain[place])],
                    "modality": MODALITIES[int(batch.modality[place])],
                    "seed": seed,
                    "candidates": [*samples[place :: len(batch.keys)], *references[place : place + 1]],
                }
            )
        return sorted(entries, key=lambda entry: entry["row"])

    def roll_out(self, batch: PromptBatch, seed: int) -> Rollout:
        """Answers of the policy."""
        assert self.policy is not None
        stops = (*self.sampling.stop_tokens, *stop_tokens(self.processor))
        visuals = self.policy.encode(batch.prompts)
        sampling = replace(self.sampling, stop_tokens=stops)
        return self.engine.generate(self.policy, batch, visuals, sampling, seed=seed)

    def references(self, batch: PromptBatch, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The responses that came with the records, as candidates; none where records have none."""
        said = [self.trainer.datamodule.reference(row) for row in rows]
        if not said or None in said:
            return []
        ended = torch.ones(len(batch.keys), dtype=torch.bool, device=self.device)
        rollout = stack_rollout(batch, batch.reference, ended)
        return self.candidates(rollout, said, REFERENCE)

    def candidates(self, rollout: Rollout, said: Sequence[str], origin: str) -> list[dict[str, Any]]:
        """The rows of a rollout as candidates, with the scores that the judge gives them."""
        columns = {
            "response": said,
            "from": [origin] * len(said),
            "tokens": rollout.lengths.tolist(),
            "ended": rollout.ended.tolist(),
            "score": self.judge.rate(said, rollout),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def pairs(
        self, entries: Iterable[dict[str, Any]], conversation: Callable[[int], list[dict[str, Any]]]
    ) -> Iterator[dict[str, Any]]:
        """What becomes of the entries, in their order.

        Args:
            entries: of ``predict_step``, of all ranks.
            conversation: gives the prompt of a row in the form of chat completions.

        Returns:
            For each entry the entry itself with ``pairs``, of which each has the numbers of the ``chosen``
            and of the ``rejected`` candidate, the ``gap`` and the judge's ``evidence``; ``counts``, and what
            was ``left_out`` by its reason.
        """
        waiting: deque[tuple[dict[str, Any], list[int]]] = deque()

        def contests() -> Iterator[Contest]:
            for entry in entries:
                candidates = entry.get("candidates", [])
                usable = [n for n, one in enumerate(candidates) if one["ended"] and one["response"].strip()]
                waiting.append((entry, usable))
                yield self.contest(entry, [candidates[n] for n in usable], conversation)

        for ruling in self.judge.decide(contests()):
            entry, usable = waiting.popleft()
            candidates = entry.get("candidates", [])
            choice = choose_pairs(
                ruling.preferences,
                [candidates[n]["tokens"] for n in usable],
                seed=f"{self.seed}/{entry['row']}",
                **self.choice,
            )
            left_out = ruling.left_out + Counter(
                {
                    UNUSABLE: len(candidates) - len(usable),
                    TOO_LONG: choice.too_long,
                    TOO_SHORT: choice.too_short,
                }
            )
            if "error" in entry:
                left_out = Counter({"prompts that cannot be read": 1})
            pairs = [
                {
                    "chosen": usable[one.chosen],
                    "rejected": usable[one.rejected],
                    "gap": one.gap,
                    **ruling.evidence.get((one.chosen, one.rejected), {}),
                }
                for one in choice.pairs
            ]
            counts = ruling.counts + Counter({"responses": len(candidates)})
            yield {"key": "", "seed": self.seed, "candidates": [], **entry} | {
                "pairs": pairs,
                "counts": counts,
                "left_out": left_out,
            }

    def contest(
        self,
        entry: dict[str, Any],
        candidates: list[dict[str, Any]],
        conversation: Callable[[int], list[dict[str, Any]]],
    ) -> Contest:
        """An entry as the judge takes it."""
        origins = [one["from"] for one in candidates]
        return Contest(
            key=entry.get("key", ""),
            responses=[one["response"] for one in candidates],
            scores=[one["score"] for one in candidates],
            reference=origins.index(REFERENCE) if REFERENCE in origins else None,
            seed=f"{self.seed}/{entry['row']}",
            conversation=lambda: conversation(entry["row"]),
        )

    def summary(self) -> dict[str, Any]:
        """Who answered and who judged, for the report."""
        assert self.policy is not None
        return {
            "policy": self.policy.config._name_or_path,
            "sampling": asdict(self.sampling),
            "engine": type(self.engine).__name__,
            "seed": self.seed,
            "choice": self.choice,
            "judge": self.judge.summary(),
        }

    def fingerprint(self) -> str:
        """What differs when other answers would be drawn or scored; all ranks must ask together.

        Of each weight tensor the largest magnitude counts, which is the same however it is sharded.
        """
        assert self.policy is not None
        weights = [weight.detach() for weight in self.policy.parameters() if weight.numel()]
        largest = [weight.abs().amax() for weight in weights]
        whole = [one.full_tensor() if isinstance(one, DTensor) else one for one in largest]
        numbers = torch.stack([one.double().cpu() for one in whole]).numpy().tobytes()
        settings = (asdict(self.sampling), self.seed, type(self.engine).__name__, self.judge.fingerprint)
        return blake2b(numbers + repr(settings).encode(), digest_size=16).hexdigest()
