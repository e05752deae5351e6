# SPDX-License-Identifier: Apache-2.0
"""One process of rollouts that ``tests.rollout.test_gathering`` starts, alone or together with a second one.

Rank 0 answers text in few tokens, rank 1 answers pictures in many. One process alone plays both ranks.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoProcessor

from ixc_lightning.models import Backbone
from ixc_lightning.models.sharding import shard
from ixc_lightning.rollout import Sampling, TransformersEngine, rollout_seed
from tests.families import sample
from tests.rollout.prompts import prompt_batch

KINDS = (["text", "text"], ["image", "images", "text"])
LENGTHS = (2, 9)
TIMEOUT = timedelta(seconds=30)  # a hang becomes an error
STEP = 0.5


def main(options: dict[str, Any]) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    policy = Backbone(options["model"], head=True).eval()
    processor = AutoProcessor.from_pretrained(options["model"])
    ranks = [0, 1]
    if world > 1:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        ranks = [dist.get_rank()]
        mesh = init_device_mesh("cpu", (world,))
        methods = ["encode", "logits", "generate"]
        shard(policy, policy, mesh, compute_dtype=torch.float32, methods=methods)

    def roll(rank: int, iteration: int) -> dict[str, Any]:
        samples = [sample(processor, kind, seed=7 * rank + row) for row, kind in enumerate(KINDS[rank])]
        batch = prompt_batch(samples)
        sampling = Sampling(n=2, max_tokens=LENGTHS[rank], min_tokens=LENGTHS[rank])
        seed = rollout_seed(0, rank=rank, iteration=iteration)
        visuals = policy.encode(batch.prompts)
        rollout = TransformersEngine().generate(policy, batch, visuals, sampling, seed=seed)
        return {"tokens": rollout.responses.ids.tolist(), "sharded": _sharded(policy)}

    rollouts = {f"{rank}/0": roll(rank, 0) for rank in ranks}
    _train(policy, processor)
    rollouts |= {f"{rank}/1": roll(rank, 1) for rank in ranks}
    for rank in ranks:
        found = {name: value for name, value in rollouts.items() if name.startswith(f"{rank}/")}
        with open(f"{options['out']}-{rank}.json", "w") as file:
            json.dump(found, file)
    if world > 1:
        dist.destroy_process_group()


def _train(policy: Backbone, processor: Any) -> None:
    """One step on the same batch on every rank, so that the mean gradient is that of one process."""
    prompts = prompt_batch([sample(processor, "image", seed=50)]).prompts
    visuals = policy.encode(prompts)
    hidden = policy(prompts.ids, prompts.mask, prompts.token_types, visuals)
    logprobs = policy.logits(hidden[:, :-1]).log_softmax(-1)
    (-logprobs.gather(-1, prompts.ids[:, 1:, None]).mean()).backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    torch.optim.SGD(trained, lr=STEP).step()


def _sharded(policy: Backbone) -> int:
    return sum(isinstance(parameter.data, DTensor) for parameter in policy.parameters())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
