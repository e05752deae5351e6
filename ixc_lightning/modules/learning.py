# SPDX-License-Identifier: Apache-2.0
"""From an ``Experience`` to another policy: losses of tokens, minibatches, and steps of the optimisers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from ixc_lightning.functional.aggregation import Aggregation, aggregate, denominator, token_weights
from ixc_lightning.functional.policy_loss import ppo_clip_losses, ratio_statistics
from ixc_lightning.functional.value import value_losses
from ixc_lightning.modules.experience import Experience, Reading, by_prompt, shuffled
from ixc_lightning.modules.health import Health
from ixc_lightning.modules.networks import Networks
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.modules.ranks import mean_over_ranks
from ixc_lightning.modules.reading import read_tokens, value_tokens
from ixc_lightning.modules.tally import Tally, timed
from ixc_lightning.rollout import Sampling, rollout_seed


class Learning(Networks):
    """Step 5 of an iteration. ``OnPolicyModule`` says what the attributes are, and sets them."""

    aggregation: ClassVar[Aggregation] = "token_mean"
    """How the losses of tokens become one."""

    sampling: Sampling
    critic_warmup: int
    ratio_clip: float
    ratio_to: Literal["old", "reference"]
    dual_clip: float | None
    entropy_coef: float
    epochs: int
    minibatch_size: int
    rows_at_once: int
    stop_kl: float | None
    max_gradient_norm: float
    seed: int
    health: Health

    def policy_losses(self, experience: Experience, reading: Reading) -> Float[Tensor, "R T"]:
        """Loss of each token; PPO's clipped one unless the algorithm has another.

        Args:
            experience: some of the answers.
            reading: what the policy thinks of their tokens now, with its gradient.
        """
        return ppo_clip_losses(
            reading.logprobs,
            self.anchor(experience),
            experience.advantages,
            ratio_clip=self.ratio_clip,
            dual_clip=self.dual_clip,
        )

    def value_losses(self, experience: Experience, values: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """Loss of the critic at each token: squared error unless the algorithm has another."""
        return value_losses(values, experience.values, experience.returns)

    def anchor(self, experience: Experience) -> Float[Tensor, "R T"]:
        """The log-probabilities that ``ratio_to`` says the policy's are compared with in its loss."""
        return experience.ref_logprobs if self.ratio_to == "reference" else experience.logprobs

    @timed
    def learn(self, experience: Experience, pictures: Pictures) -> Tally:
        """Passes over the answers, an optimiser step for each minibatch.

        Returns:
            What was counted in all passes.
        """
        tally, count = Tally(), len(experience.valid)
        for epoch in range(self.epochs):
            drift = Tally()
            seed = rollout_seed(
                self.seed, rank=0, iteration=-1 - epoch - self.epochs * self.trainer.global_step
            )
            minibatches = list(shuffled(count, self.minibatch_size, seed=seed, device=self.device))
            for number, rows in enumerate(minibatches):
                self.accumulate(experience.rows(rows), pictures, tally, drift)
                is_end = number + 1 == len(minibatches)
                is_last = is_end and (epoch + 1 == self.epochs or self.is_far(drift))
                self.update(tally, is_last=is_last)
            if is_last:
                break
        return tally

    @property
    def is_warming_up(self) -> bool:
        """Whether the critic learns alone."""
        return self.trainer.global_step < self.critic_warmup

    def is_far(self, drift: Tally) -> bool:
        """Whether the policy has moved too far in one pass to make another."""
        if self.stop_kl is None or self.is_warming_up:
            return False
        return drift.means(self.reduce)["approximate_kl"] > self.stop_kl

    def accumulate(self, minibatch: Experience, pictures: Pictures, tally: Tally, drift: Tally) -> None:
        """Add the gradients of a minibatch, computed in parts whose weights are those of the whole.

        Policy and critic take turns with forward and backward passes: two that share a base by adapters
        could not be differentiated together.
        """
        mask = minibatch.response_mask
        total = mean_over_ranks(denominator(mask, self.aggregation), self.trainer)
        tokens = mean_over_ranks(denominator(mask, "token_mean"), self.trainer)
        is_first = "ratio" not in tally.sums
        loss = torch.zeros((), device=self.device)
        for rows in by_prompt(minibatch.rollout, self.rows_at_once):
            part = minibatch.rows(rows)
            finite = torch.ones((), dtype=torch.bool, device=self.device)
            if not self.is_warming_up:
                reading, part_loss = self.policy_part(part, pictures, total)
                loss += part_loss
                finite = part_loss.isfinite()
                self.count(part, reading, [tally, drift], is_first=is_first)
            if self.critic is not None:
                values = value_tokens(self.critic, part.rollout, pictures)
                losses = self.value_losses(part, values)
                weights = token_weights(part.response_mask, "token_mean", total=tokens)
                self.manual_backward(aggregate(losses, weights))
                tally.add_all("value_loss", losses.detach(), part.response_mask)
                finite = finite & losses.isfinite().all(dim=1)
            self.health.meet(part.rollout.keys, finite)
        if not self.is_warming_up:
            tally.add("policy_loss", loss, 1.0)

    def policy_part(
        self, part: Experience, pictures: Pictures, total: Float[Tensor, ""]
    ) -> tuple[Reading, Float[Tensor, ""]]:
        """Add the policy's gradient of a part; gives what it thinks of the tokens now, and its loss."""
        assert self.policy is not None
        heat = self.sampling.temperature
        reading = read_tokens("policy", self.policy, part.rollout, pictures, temperature=heat)
        losses = self.policy_losses(part, reading)
        if self.entropy_coef:
            losses = torch.sub(losses, reading.entropy, alpha=self.entropy_coef)
        loss = aggregate(losses, token_weights(part.response_mask, self.aggregation, total=total))
        self.manual_backward(loss)
        return reading, loss.detach()

    def count(self, part: Experience, reading: Reading, tallies: list[Tally], *, is_first: bool) -> None:
        """Count how far the policy has moved, and how sure it is."""
        mask = part.response_mask
        moved = ratio_statistics(reading.logprobs, part.logprobs, mask, ratio_clip=self.ratio_clip)
        held = ratio_statistics(reading.logprobs, self.anchor(part), mask, ratio_clip=self.ratio_clip)
        for tally in tallies:
            tally.add("ratio", moved.ratio, moved.tokens)
            tally.add("approximate_kl", moved.kl, moved.tokens)
            tally.add("clip_fraction", held.clipped, held.tokens)
            tally.add_all("entropy", reading.entropy.detach(), mask)
            if is_first:
                tally.add("first_ratio", moved.ratio, moved.tokens)

    def update(self, tally: Tally, *, is_last: bool) -> None:
        """Clip both gradients, then step, the critic first; neither steps where ``health`` does not allow it.

        Lightning counts the steps of optimisers that it has wrapped. It is to count iterations, so only the
        policy's last step goes through the wrapper. In the critic's warm-up the policy has no gradient, and
        its optimiser changes nothing.
        """
        policy, critic = self._both_optimizers(wrapped=False)
        norms = {} if critic is None else {"critic": self.clip("critic")}
        if not self.is_warming_up:
            norms["policy"] = self.clip("policy")
        if self.health.allows(self.trainer, norms):
            self.is_learning = True
            for name, norm in norms.items():
                tally.add("gradient_norm" if name == "policy" else "critic_gradient_norm", norm, 1.0)
        else:  # without gradients the steps change nothing
            for role in norms:
                self.roles()[role].zero_grad()
        if critic is not None:
            critic.step()
            critic.zero_grad()
        if is_last:
            self._both_optimizers(wrapped=True)[0].step()
        else:
            policy.step()
        policy.zero_grad()

    def clip(self, name: str) -> Float[Tensor, ""]:
        """Clip a role's gradient, and give its norm before that, of all ranks."""
        trained = [weight for weight in self.roles()[name].parameters() if weight.grad is not None]
        norm = clip_grad_norm_(trained, self.max_gradient_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _both_optimizers(self, *, wrapped: bool) -> tuple[Any, Any]:
        found = self.optimizers(use_pl_optimizer=wrapped)
        return tuple(found) if isinstance(found, list) else (found, None)
