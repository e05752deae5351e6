# SPDX-License-Identifier: Apache-2.0
"""One process that ``test_reencoding`` starts, alone or with a second one; the judge is of another family."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models import Backbone
from ixc_lightning.modules import DomainScale, FixedKL, RLOOModule
from ixc_lightning.rollout import Sampling
from ixc_lightning.types import PromptBatch, RewardPrompts
from tests.digits import trainer
from tests.families import collate, sample
from tests.modules.policies import same_judge
from tests.modules.sharded_on_policy import PARTS, TIMEOUT, TOKENS, Notes, Prompts, Replay

STEPS = 2
MESSAGES = ({"role": "user", "content": [{"type": "text", "text": "?"}]},)
"""What stands before an answer has no say in the answer's tokens."""


class TwiceEncoded(Prompts):
    """The prompts of ``sharded_on_policy``, by the processor of another family too."""

    def encode_for(self, source: str, *, response_suffix: str) -> ChatEncoder:
        """Encode for that family."""
        self.reader = ChatEncoder(source, response_suffix=response_suffix)
        return self.reader

    def batch(self, step: int) -> PromptBatch:
        """The prompts of a step."""
        own = super().batch(step)
        kinds = [kind for part in self.parts for kind in self.kinds[part]]
        seeds = [int(key.removeprefix("set:")) for key in own.keys]
        made = [
            sample(self.reader.processor, kind, seed=seed) for kind, seed in zip(kinds, seeds, strict=True)
        ]
        return own._replace(reward_prompts=RewardPrompts(collate(made), [MESSAGES] * len(made)))


def main(options: dict[str, Any]) -> None:
    """Train for two iterations, and write down what was logged in them."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    out = Path(options["out"])
    torch.manual_seed(0)
    notes = Notes()
    module = RLOOModule(
        partial(Backbone, options["model"], head=True),
        reward_model=partial(same_judge, options["judge"]),
        reencode=True,
        optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-3),
        kl=FixedKL(0.05),
        score_scale=DomainScale(),
        sampling=Sampling(n=2, max_tokens=TOKENS),
        engine=Replay(),
        rows_at_once=2,
        compute_dtype="float32",
    )
    strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, timeout=TIMEOUT)
    run = trainer(
        out / f"rank-{rank}",
        max_steps=STEPS,
        strategy=strategy if world > 1 else "auto",
        devices=world,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[notes],
    )
    run.fit(module, TwiceEncoded(options["model"], PARTS, [rank] if world > 1 else [0, 1], steps=STEPS))
    if rank == 0:
        (out / "result.json").write_text(json.dumps(notes.logged))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
