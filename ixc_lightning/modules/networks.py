# SPDX-License-Identifier: Apache-2.0
"""Who takes part in on-policy training: four networks, their optimisers, and what a checkpoint keeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from ixc_lightning.functional.moments import Moments, merge_moments
from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.one_base import Voice, is_silent, lend
from ixc_lightning.models.packing import Sharing, prepare
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.scoring import check_suffix
from ixc_lightning.models.sharding import built_for, resharded
from ixc_lightning.modules.health import Health
from ixc_lightning.modules.kl_control import KLControl
from ixc_lightning.modules.optimisation import check_state, optimise, without_callables
from ixc_lightning.modules.random_state import restore_random_state, save_random_state
from ixc_lightning.modules.reencoding import Reencoding
from ixc_lightning.modules.roles import (
    check_speaks,
    frozen,
    joined,
    placed,
    without_dropout,
)
from ixc_lightning.modules.score_scale import DomainScale
from ixc_lightning.processors import load_processor
from ixc_lightning.rollout import check_same_tokenizer
from ixc_lightning.types import InputError

STATE = "on_policy"
SAVED = ("policy.", "critic.")
"""Roles that are trained. The others are built from their sources, never change, and are in no checkpoint."""
PRECISIONS = ("32-true", "bf16-mixed")
ADVICE = {
    "reward model": ", or give model.reencode: true, by which every answer is encoded anew for it",
    "critic": (
        "; a critic reads the policy's own tokens one by one, so it cannot start from a reward model that "
        "reads others: the policy's source with head: zero will do"
    ),
}
"""What else can be done about a role with another tokenizer."""


class Networks(L.LightningModule):
    """Policy, reference, reward model and critic: built, optimised and saved.

    ``OnPolicyModule`` says what the attributes are, and sets them.
    """

    base: Backbone | None
    policy: Backbone | None
    reference: Backbone | None
    reward_model: RewardModel | None
    critic: Critic | None
    build_policy: Callable[[], Backbone]
    build_reward_model: Callable[[], RewardModel] | None
    build_critic: Callable[[], Critic] | None
    optimizer: OptimizerCallable
    critic_optimizer: OptimizerCallable | None
    scheduler: LRSchedulerCallable | None
    critic_scheduler: LRSchedulerCallable | None
    kl: KLControl
    health: Health
    score_scale: DomainScale | None
    reward_suffix: str
    sharing: Sharing
    reencode: bool
    reencoding: Reencoding | None
    compute_dtype: str
    start: dict[str, Any] | None
    is_learning: bool

    def __init__(self) -> None:
        super().__init__()
        self.base = None

    @property
    def model(self) -> Backbone | None:
        """What training makes, and an export writes: the policy."""
        return self.policy

    @property
    def processor(self) -> Any:
        """Of the datamodule, and so of the policy."""
        return self.trainer.datamodule.encoder.processor

    @property
    def suffix(self) -> list[int]:
        """The tokens of ``reward_suffix``, as the reward model reads them."""
        reader: Any = self.processor if self.reencoding is None else self.reencoding.encoder
        tokenizer = getattr(reader, "tokenizer", reader)
        return tokenizer(self.reward_suffix, add_special_tokens=False)["input_ids"]

    def roles(self) -> dict[str, Backbone | RewardModel | Critic | None]:
        """All networks by name."""
        return {
            "policy": self.policy,
            "reference": self.reference,
            "reward_model": self.reward_model,
            "critic": self.critic,
        }

    def setup(self, stage: str) -> None:
        """Look at the trainer before anything large is built.

        Raises:
            InputError: it computes in a precision in which this training does not hold, or shards by a
                strategy that cannot do it.
        """
        if stage == "fit" and self.trainer.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision is {self.trainer.precision}, but on-policy training computes in "
                f"{' or '.join(PRECISIONS)}: its steps are not scaled as float16 needs it, and weights in "
                "half precision lose small steps; give trainer.precision one of the two"
            )

        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise InputError(
                "trainer.strategy is FSDPStrategy, which wraps the module as one network, but on-policy "
                "training calls several networks in one step: give ModelParallelStrategy, which shards each"
            )

    def configure_model(self) -> None:
        """Build every role, once, and shard each where the strategy has a mesh of ranks.

        A policy with adapters lends its base to all roles whose base is equal to it; the reference is that
        base, or has the adapters that the policy starts with. Without a trainer the policy is built alone:
        that is all that is exported from a checkpoint.

        Raises:
            InputError: the policy cannot speak.
        """
        if self.policy is not None:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        dtype = getattr(torch, self.compute_dtype)
        with built_for(mesh):
            self.build()
        for role in (self.base, *self.roles().values()):  # the base first: it has all its voices by now
            if role is not None:
                placed(role, mesh, compute_dtype=dtype)
        if self._trainer is not None:
            self.prepare_sharing()
        self.train(self.training)

    def build(self) -> None:
        """Build every role, each on the policy's base if that is lent and the role's own is equal."""
        policy = without_dropout(self.build_policy())
        check_speaks(policy, "policy")
        if policy.adapter is not None:
            self.base, policy = policy, lend(policy)
        self.policy = policy
        if self._trainer is None:
            return
        self.reference = frozen(self.start_of(policy))
        if self.build_reward_model is not None:
            judge = frozen(self.build_reward_model())
            if self.reencode:
                source, suffix = judge.backbone.config._name_or_path, self.reward_suffix
                encoder = self.trainer.datamodule.encode_for(source, response_suffix=suffix)
                self.reencoding = Reencoding(encoder)
            self.reward_model = joined(judge, self.base, name="reward_model")
        if self.build_critic is not None:
            self.critic = joined(without_dropout(self.build_critic()), self.base, name="critic")

    def prepare_sharing(self) -> None:
        """Have roles read a prompt once for all its answers, where that is asked for and they can."""
        for policy in (self.policy, self.reference):
            assert policy is not None
            policy.shares = prepare(policy, self.sharing)
        if self.critic is not None:
            self.critic.prepare_sharing(self.sharing)
        for role in (self.base, *self.roles().values()):
            if role is not None:
                resharded(role)

    def start_of(self, policy: Backbone) -> Backbone:
        """What the policy says before it is trained."""
        if self.base is None:
            return self.build_policy()
        if isinstance(policy, Voice) and is_silent(policy):
            return Voice(self.base, None, head=True)
        return joined(self.build_policy(), self.base, name="reference")

    def on_fit_start(self) -> None:
        """Make sure that reward model and critic can read what the policy says.

        Raises:
            InputError: see ``check_readers``.
        """
        self.check_readers()
        # Lightning advises to keep the weights of before the step. Ours are saved behind whole iterations,
        # and optimisers, schedules and data stand there as well.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")

    def check_readers(self) -> None:
        """Make sure that reward model and critic read the policy's tokens and pictures as they are.

        Raises:
            InputError: one has another tokenizer, template or picture processor, and it is not a reward model
                for which answers are encoded anew; or the reward model reads a token that no response holds.
        """
        roles = {"reward model": None if self.reencode else self.reward_model, "critic": self.critic}
        for name, role in roles.items():
            if role is not None:
                own = load_processor(role.backbone.config._name_or_path)
                check_same_tokenizer(self.processor, own, role=name, advice=ADVICE[name])
        if self.reward_model is not None:
            check_suffix(self.reward_model, self.suffix, setting="reward_suffix")

    def train(self, mode: bool = True) -> Networks:
        """Set training mode, except in roles that only judge.

        Where roles share a base its mode is the policy's; with every dropout at rate 0 that decides no more
        than whether activations are kept or computed again.
        """
        super().train(mode)
        for role in (self.reference, self.reward_model):
            if role is not None:
                role.eval()
        if self.base is not None:
            self.policy.train(mode)
        return self

    def configure_optimizers(self) -> Any:
        """The policy's optimiser, and the critic's, with their schedules."""
        assert self.policy is not None
        made = [optimise(self.policy.parameters(), self.optimizer, self.scheduler)]
        if self.critic is not None:
            assert self.critic_optimizer is not None
            made.append(optimise(self.critic.parameters(), self.critic_optimizer, self.critic_scheduler))
        return tuple(made)

    def step_schedules(self) -> None:
        """Move every learning rate on by one iteration."""
        schedules = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Policy and critic; the roles that judge are built from their sources."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name.startswith(SAVED)}

    def steering(self) -> dict[str, Any]:
        """The KL coefficient and the running statistics, as plain numbers."""
        scale = {} if self.score_scale is None else self.score_scale.state_dict()
        return {"kl_coef": self.kl.coef, "score_scale": scale}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the KL coefficient, the running statistics and the random state, and whether all of it fits.

        A checkpoint may be written in the midst of an iteration, by a signal or an exception. Before the
        first optimiser step it is that of the iteration's start, later nothing can be made of it.
        """
        checkpoint["hyper_parameters"] = without_callables(checkpoint.get("hyper_parameters", {}))
        checkpoint[STATE] = {**(self.start or self.steering()), "is_whole": not self.is_learning}
        save_random_state(self.trainer, checkpoint)
        self.health.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, by name, and go on where it stood.

        Raises:
            InputError: it is of another architecture, or was written between two optimiser steps of one
                iteration and is to be trained on.
        """
        if self._trainer is None:
            weights = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {name: w for name, w in weights if name.startswith("policy.")}
        check_state(self, checkpoint)
        if self._trainer is None or not self._trainer.training:
            return
        state = checkpoint[STATE]
        if not state["is_whole"]:
            raise InputError(
                "the checkpoint was written in the midst of an iteration, when policy and critic had made "
                "some of its steps, so no run can go on from it as if it had not stopped: resume from the "
                "checkpoint before it, or export this one and start a new run from the policy"
            )
        restore_random_state(self._trainer, checkpoint)
        self.health.load(checkpoint)
        self.kl.coef = state["kl_coef"]
        if self.score_scale is not None:
            self.score_scale.load_state_dict(state["score_scale"])

    def reduce(self, sums: Tensor) -> Tensor:
        """Mean over ranks, of sums and counts alike."""
        return self.trainer.strategy.reduce(sums, reduce_op="mean")

    def over_ranks(self, moments: Moments) -> Moments:
        """Moments of this rank to those of all."""
        every = self.all_gather(torch.tensor(moments, dtype=torch.float64, device=self.device))
        return merge_moments(Moments(*row) for row in every.reshape(-1, 3).tolist())
