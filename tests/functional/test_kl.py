# SPDX-License-Identifier: Apache-2.0
"""The estimators have the direction KL(policy ‖ reference): shown by exact expectations, not by samples."""

import math

import pytest
import torch

from ixc_lightning.functional.kl import (
    KL_TO_REFERENCE,
    adapted_kl_coef,
    kl_to_reference_k1,
    kl_to_reference_k2,
    kl_to_reference_k3,
)

DOUBLE = 1e-12
POLICY = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.05, 0.05, 0.9]], dtype=torch.float64)
FORWARD = sum(p * math.log(p / q) for p, q in zip(POLICY[0].tolist(), REFERENCE[0].tolist(), strict=True))
REVERSE = sum(q * math.log(q / p) for p, q in zip(POLICY[0].tolist(), REFERENCE[0].tolist(), strict=True))


def _expectation(estimator):
    """Of the estimator over tokens that the policy draws."""
    return (POLICY * estimator(POLICY.log(), REFERENCE.log())).sum().item()


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_expect_the_kl_from_policy_to_reference_and_not_its_reverse(name):
    assert abs(FORWARD - REVERSE) > 0.05
    assert _expectation(KL_TO_REFERENCE[name]) == pytest.approx(FORWARD, abs=DOUBLE)


def test_k2_is_half_the_squared_log_ratio():
    expected = sum(
        p * 0.5 * math.log(p / q) ** 2 for p, q in zip(POLICY[0].tolist(), REFERENCE[0].tolist(), strict=True)
    )
    assert _expectation(kl_to_reference_k2) == pytest.approx(expected, abs=DOUBLE)


def test_k2_as_a_loss_has_the_gradient_of_the_kl_and_k1_has_none_in_expectation():
    def gradient(loss_of):
        scores = POLICY.log().clone().requires_grad_()
        loss_of(scores.log_softmax(dim=-1)).backward()
        return scores.grad

    # samples are the policy's own, so their probabilities carry no gradient
    k2 = gradient(lambda lp: (POLICY * kl_to_reference_k2(lp, REFERENCE.log())).sum())
    k1 = gradient(lambda lp: (POLICY * kl_to_reference_k1(lp, REFERENCE.log())).sum())
    exact = gradient(lambda lp: (lp.exp() * (lp - REFERENCE.log())).sum())
    assert torch.allclose(k2, exact, atol=DOUBLE)
    assert k1.abs().max() < DOUBLE


@pytest.mark.parametrize("estimator", [kl_to_reference_k2, kl_to_reference_k3])
def test_k2_and_k3_are_nowhere_negative_and_zero_for_equal_models(estimator):
    logprobs, ref = -5 * torch.rand(1, 50), -5 * torch.rand(1, 50)
    assert (estimator(logprobs, ref) >= 0).all()
    assert not estimator(ref, ref).any()


def test_k3_of_impossible_tokens_is_large_and_finite():
    assert kl_to_reference_k3(torch.tensor([[-1e4]]), torch.tensor([[0.0]])).isfinite().all()


@pytest.mark.parametrize("estimator", KL_TO_REFERENCE.values())
def test_shapes_that_would_broadcast_are_an_error(estimator, unchecked_shapes):
    with pytest.raises(ValueError, match="differ in shape"):
        estimator(torch.zeros(2, 3), torch.zeros(1, 3))


def test_the_coefficient_rises_above_the_target_falls_below_it_and_rests_on_it():
    def adapted(kl):
        return adapted_kl_coef(0.1, kl, target=6.0, horizon=100, samples=10)

    assert adapted(6.0) == 0.1
    # 10 % too far: + 0.1 · 10/100 of it; at most ± 0.2 · 10/100
    assert adapted(6.6) == pytest.approx(0.1 * 1.01)
    assert adapted(60.0) == pytest.approx(0.1 * 1.02)
    assert adapted(0.0) == pytest.approx(0.1 * 0.98)


def test_a_target_of_zero_is_an_error():
    with pytest.raises(ValueError, match="must be positive"):
        adapted_kl_coef(0.1, 1.0, target=0.0, horizon=100, samples=10)
