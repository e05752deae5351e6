# SPDX-License-Identifier: Apache-2.0
"""How far the policy has moved from the reference: estimates of KL(policy ‖ reference) from its own samples.

All take log π(y) and log π_ref(y) of tokens y that the *policy* drew, and estimate the same number,
KL(π ‖ π_ref) = E_π[log π − log π_ref] ≥ 0, in nats. Schulman 2020, "Approximating KL divergence"
(http://joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""e²⁰ is 5·10⁸: what lies beyond decides nothing but overflow."""


def kl_to_reference_k1(
    logprobs: Float[Tensor, "R T"], ref_logprobs: Float[Tensor, "R T"]
) -> Float[Tensor, "R T"]:
    """Estimate KL(policy ‖ reference) by log π − log π_ref: unbiased, often negative for a single token.

    As part of the reward its expected policy gradient is that of the KL itself.
    """
    _require_equal_shapes(logprobs, ref_logprobs)
    return logprobs - ref_logprobs


def kl_to_reference_k2(
    logprobs: Float[Tensor, "R T"], ref_logprobs: Float[Tensor, "R T"]
) -> Float[Tensor, "R T"]:
    """Estimate KL(policy ‖ reference) by ½ (log π − log π_ref)²: never negative, biased.

    As a loss on the policy's own samples its gradient is an unbiased one of the KL.
    """
    _require_equal_shapes(logprobs, ref_logprobs)
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_to_reference_k3(
    logprobs: Float[Tensor, "R T"], ref_logprobs: Float[Tensor, "R T"]
) -> Float[Tensor, "R T"]:
    """Estimate KL(policy ‖ reference) by π_ref/π − 1 − log(π_ref/π): never negative, unbiased.

    DeepSeekMath, Eq. 4 (arXiv 2402.03300). As a loss its gradient is that of the reverse direction. The
    log-ratio is held within ±20, outside of which it has no gradient.
    """
    _require_equal_shapes(logprobs, ref_logprobs)
    log_ratio = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.expm1() - log_ratio


KL_TO_REFERENCE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_to_reference_k1,
    "k2": kl_to_reference_k2,
    "k3": kl_to_reference_k3,
}
"""The estimators by the names that Schulman gave them."""


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, samples: int) -> float:
    """The coefficient of the KL penalty for the next iteration, raised where the policy went too far.

    β ← β · (1 + clip(kl/target − 1, ±0.2) · samples/horizon)

    Ziegler et al. 2019, §2.2 (arXiv 1909.08593).

    Args:
        kl_coef: β of this iteration.
        kl: KL(policy ‖ reference) of whole responses, the mean of this iteration, in nats.
        target: the KL to keep, in nats per response.
        horizon: samples after which a KL that is 20 % off, or more, has moved β by 20 %.
        samples: responses of this iteration.

    Raises:
        ValueError: target or horizon is not positive.

    Example:
        >>> round(adapted_kl_coef(0.1, 12.0, target=6.0, horizon=1000, samples=100), 4)  # + 0.2 · 0.1
        0.102
    """
    if not (target > 0 and horizon > 0):
        raise ValueError(f"target {target} and horizon {horizon} must be positive")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * samples / horizon)


def _require_equal_shapes(logprobs: Tensor, ref_logprobs: Tensor) -> None:
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(f"logprobs {logprobs.shape} and ref_logprobs {ref_logprobs.shape} differ in shape")
