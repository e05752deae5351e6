# SPDX-License-Identifier: Apache-2.0
"""On-policy modules over the tiny model, for tests that train for an iteration or two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW

from ixc_lightning.datamodules import PromptDataModule
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.modules import FixedKL, OnPolicyModule, PPOModule, WeightedVerifier
from ixc_lightning.rollout import Sampling
from ixc_lightning.types import Rollout
from tests.digits import FRAMES

PROMPTS = 4  # one of each modality
SAMPLES = 2


class Share:
    """Scores the share of tokens with an even id: a reward that a random policy earns now and then."""

    def __call__(self, texts: Sequence[str], rollout: Rollout) -> Float[Tensor, " R"]:
        """Between 0 and 1."""
        mask = rollout.responses.mask
        return ((rollout.responses.ids % 2 == 0) & mask).sum(dim=1) / mask.sum(dim=1)


def prompt_data(digits: Path, tiny: Path, **options: Any) -> PromptDataModule:
    """The small prompt set, one prompt of each modality."""
    settings = {"train": str(digits / "prompt/train"), "val": str(digits / "prompt/heldout")}
    settings |= {"batch_size": PROMPTS, "video_frames": FRAMES}
    return PromptDataModule(str(tiny), **{**settings, **options})


def on_policy(kind: type[OnPolicyModule], tiny: Path, **options: Any) -> OnPolicyModule:
    """A module of the kind over the tiny model, with a verifier that a random policy can please."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "optimizer": partial(AdamW, lr=1e-3),
        "kl": FixedKL(0.05),
        "sampling": Sampling(n=SAMPLES, max_tokens=5),
        "verifiers": [WeightedVerifier(Share())],
        "minibatch_size": 4,
        "epochs": 2,
    }
    if issubclass(kind, PPOModule):
        settings |= {"critic": partial(Critic, str(tiny)), "critic_optimizer": partial(AdamW, lr=1e-3)}
    return kind(partial(Backbone, str(tiny), head=True), **{**settings, **options})


def judged(tiny: Path) -> dict[str, Any]:
    """The option that adds a reward model, whose head is the same each time it is built."""

    return {"reward_model": partial(same_judge, str(tiny))}


def same_judge(source: str, *, frozen_tower: Literal["whole", "sharded"] = "whole") -> RewardModel:
    """A reward model whose head is the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return RewardModel(source, frozen_tower=frozen_tower)
