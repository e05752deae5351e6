# SPDX-License-Identifier: Apache-2.0
"""One process of on-policy training that ``test_sharded`` starts, alone or together with a second one.

Rank 0 has more prompts than rank 1, and other pictures; or text alone, where the towers are trained. One
process alone has the prompts of both.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from ixc_lightning import modules
from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.one_base import Voice
from ixc_lightning.models.visuals import picture_token_ids
from ixc_lightning.rollout import Sampling, stack_rollout
from ixc_lightning.types import PromptBatch, Responses, Rollout
from tests.digits import trainer
from tests.families import sample
from tests.modules.family_data import Encoder
from tests.modules.policies import Share, same_judge
from tests.rollout.prompts import prompt_batch

PARTS = (["text", "image", "images"], ["video"])
TEXT_AND_PICTURES = (["text", "text"], ["image", "images"])
STEPS = 2
LR = 1e-3
TOKENS = 5
VOCABULARY = 60  # of the replayed tokens; every tiny tokenizer has more
TIMEOUT = timedelta(seconds=40)  # a hang becomes an error


class Replay:
    """Answers of random length that a prompt's key fixes, whoever is asked: ranks draw by their own seeds."""

    def generate(
        self, policy: Any, batch: PromptBatch, visuals: Any, sampling: Sampling, *, seed: int
    ) -> Rollout:
        """The responses of every prompt."""
        rows = [(key, number) for number in range(sampling.n) for key in batch.keys]
        draws = [
            torch.Generator().manual_seed(zlib.crc32(f"{key}/{number}".encode())) for key, number in rows
        ]
        ids = torch.stack([torch.randint(5, VOCABULARY, (TOKENS,), generator=draw) for draw in draws])
        lengths = torch.stack([torch.randint(1, TOKENS + 1, (1,), generator=draw) for draw in draws])
        pictures = torch.tensor([*picture_token_ids(policy.config).values()])
        ids = ids.where(~torch.isin(ids, pictures), VOCABULARY)  # no picture would belong to them
        mask = torch.arange(TOKENS) < lengths
        return stack_rollout(batch, Responses(ids.masked_fill(~mask, 0), mask), lengths[:, 0] < TOKENS)


class Prompts(L.LightningDataModule):
    """In every step the prompts of the given parts.

    Args:
        model: folder of the policy.
        kinds: of prompts, for each part.
        parts: those of this process.
        steps: how many there are.
    """

    def __init__(self, model: str, kinds: Sequence[list[str]], parts: list[int], *, steps: int) -> None:
        super().__init__()
        self.kinds, self.steps = kinds, steps
        self.encoder = Encoder(AutoProcessor.from_pretrained(model))
        self.domains = ["few", "many"]
        self.parts = parts

    def batch(self, step: int) -> PromptBatch:
        """The prompts of a step, other ones in each."""
        places = [(part, row, kind) for part in self.parts for row, kind in enumerate(self.kinds[part])]
        seeds = [100 * step + 10 * part + row for part, row, _ in places]
        made = [
            sample(self.encoder.processor, one[2], seed=seed) for one, seed in zip(places, seeds, strict=True)
        ]
        keys = [f"set:{seed}" for seed in seeds]
        domain = torch.tensor([len(kind) % 2 for _, _, kind in places])
        return prompt_batch(made)._replace(keys=keys, domain=domain)

    def train_dataloader(self) -> Any:
        """All steps."""
        return DataLoader([self.batch(step) for step in range(self.steps)], batch_size=None)

    def val_dataloader(self) -> Any:
        """A step of its own."""
        return DataLoader([self.batch(99)], batch_size=None)


class Notes(Callback):
    """Keeps what was logged in every iteration."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def main(options: dict[str, Any]) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    out, model = Path(options["out"]), options["model"]
    kind = getattr(modules, options["kind"])
    trains_tower = options.get("trains_tower", False)
    judge = options.get("judge")  # a folder of adapters: then all roles stand on one base
    quantisation = options.get("quantisation")
    steps_of_run = options.get("steps", STEPS)
    freeze = {"freeze": [] if trains_tower else ["vision", "projector"]}
    tower = {"frozen_tower": options.get("frozen_tower", "whole")}
    kinds = TEXT_AND_PICTURES if trains_tower else PARTS
    # With trained towers the policy itself answers, the likeliest tokens: ranks draw by their own seeds.
    answering: dict[str, Any] = {"sampling": Sampling(n=1, max_tokens=3, greedy=True), "critic_warmup": 1}
    replaying: dict[str, Any] = {"sampling": Sampling(n=2, max_tokens=TOKENS), "engine": Replay()}

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[L.Trainer, Any, Notes]:
        torch.manual_seed(0)
        # A large ε: gradients that are zero but for rounding must not become whole steps.
        optimizer = partial(torch.optim.AdamW, lr=LR, eps=1e-3)
        rest = {**freeze, **tower, "quantisation": quantisation}
        adapted = {**rest, **({"adapter": LoRA(rank=4, alpha=8.0)} if judge else {})}
        critic = {"critic": partial(Critic, judge or model, head="zero", **rest)}
        critic["critic_optimizer"] = optimizer
        judging = (
            partial(RewardModel, judge, quantisation=quantisation)
            if judge
            else partial(same_judge, model, **tower)
        )
        module = kind(
            partial(Backbone, model, head=True, **adapted),
            **(critic if issubclass(kind, modules.PPOModule) else {}),
            reward_model=None if trains_tower else judging,
            verifiers=[modules.WeightedVerifier(Share())],
            optimizer=optimizer,
            kl=modules.AdaptiveKL(0.05, target=0.01, horizon=20),
            score_scale=None if trains_tower else modules.DomainScale(),
            **(answering if trains_tower else replaying),
            minibatch_size=64,
            rows_at_once=64 if trains_tower else 2,
            epochs=1 if trains_tower else 2,
            compute_dtype="float32",
        )
        strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, timeout=TIMEOUT)
        notes = Notes()
        run = trainer(
            out / f"rank-{rank}" if world > 1 else out,
            max_steps=steps,
            strategy=strategy if world > 1 else "auto",
            devices=world,
            inference_mode=False,
            use_distributed_sampler=False,
            val_check_interval=steps_of_run,
            callbacks=[notes],
        )
        data = Prompts(model, kinds, [rank] if world > 1 else [0, 1], steps=2 * steps_of_run)
        run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return run, module, notes

    run, module, notes = fit(steps_of_run)
    for part in module.modules():
        if hasattr(part, "reshard"):
            part.reshard()
    state = {name: whole(value) for name, value in module.state_dict().items()}
    result = {
        "logged": notes.logged,
        "validation": {name: float(value) for name, value in run.callback_metrics.items() if "val/" in name},
        "sharded": sum(isinstance(weight.data, DTensor) for weight in module.parameters()),
        "divided_towers": all(
            isinstance(weight.data, DTensor)
            for name, weight in module.named_parameters()
            if "vision" in name or "projector" in name
        ),
        "looks": sorted(set((module.eyes or {}).values())),
        "on_one_base": sum(isinstance(part, Voice) for part in module.modules()),
        "kl_coef": module.kl.coef,
        "scale": {} if trains_tower else module.score_scale.state_dict(),
    }
    if not trains_tower:
        run.save_checkpoint(out / "last.ckpt")
        again = fit(steps_of_run + 1, out / options["resume_from"])
        result["resumed_step"], result["resumed"] = again[0].global_step, again[2].logged
    if rank == 0:
        torch.save(state, out / "state.pt")
        (out / "result.json").write_text(json.dumps(result))


def whole(value: Tensor) -> Tensor:
    """A tensor in full."""
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
