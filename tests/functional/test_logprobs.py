# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropies agree with float64 softmaxes, in chunks or whole, forward and backward."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ixc_lightning.functional.logprobs import in_rows, token_logprobs

EXACT = 1e-5  # float32 softmax over a small vocabulary
MASK = torch.tensor([[True, True, False], [True, False, False]])


def _case(places=7, width=4, vocabulary=11):
    torch.manual_seed(0)
    hidden = torch.randn(places, width, requires_grad=True)
    return hidden, torch.randint(0, vocabulary, (places,)), nn.Linear(width, vocabulary, bias=False)


def _reference(hidden, targets, weight, temperature):
    """log π and H of each place by loops over the vocabulary, in float64."""
    logprobs, entropy = [], []
    for state, token in zip(np.float64(hidden), targets, strict=True):
        z = np.float64(weight) @ state / temperature
        p = np.exp(z) / sum(np.exp(value) for value in z)
        logprobs.append(math.log(p[token]))
        entropy.append(-sum(q * math.log(q) for q in p))
    return logprobs, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_they_agree_with_loops_in_float64_at_any_chunk(temperature, chunk):
    hidden, targets, head = _case()
    out = token_logprobs(hidden, targets, head, temperature=temperature, chunk=chunk)
    logprobs, entropy = _reference(
        hidden.detach().numpy(), targets.tolist(), head.weight.detach().numpy(), temperature
    )
    assert out.logprobs.tolist() == pytest.approx(logprobs, abs=EXACT)
    assert out.entropy.tolist() == pytest.approx(entropy, abs=EXACT)


def test_gradients_of_chunks_are_those_of_the_whole_softmax():
    hidden, targets, head = _case()
    out = token_logprobs(hidden, targets, head, temperature=0.7, chunk=2)
    (out.logprobs.sum() + 0.3 * out.entropy.sum()).backward()
    got = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    whole = torch.distributions.Categorical(logits=head(hidden) / 0.7)
    (whole.log_prob(targets).sum() + 0.3 * whole.entropy().sum()).backward()
    assert torch.allclose(got[0], hidden.grad, atol=EXACT)
    assert torch.allclose(got[1], head.weight.grad, atol=EXACT)


def test_no_more_logits_exist_at_a_time_than_a_chunk_has_in_the_backward_pass_too():
    hidden, targets, head = _case()
    seen = []
    out = token_logprobs(hidden, targets, lambda states: seen.append(len(states)) or head(states), chunk=3)
    out.logprobs.sum().backward()
    assert sorted(seen, reverse=True) == [3, 3, 3, 3, 1, 1]  # 7 places forward, and once more backward


def test_extreme_logits_give_finite_numbers():
    hidden = torch.tensor([[1e4, -1e4, 0.0]])
    out = token_logprobs(hidden, torch.tensor([1]), nn.Identity())
    assert out.logprobs.item() == pytest.approx(-2e4)
    assert out.entropy.item() == 0.0


def test_no_place_gives_no_value():
    out = token_logprobs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), nn.Linear(4, 5))
    assert out.logprobs.shape == out.entropy.shape == (0,)


def test_bfloat16_states_are_compared_in_float32():
    hidden = torch.zeros(2, 4, dtype=torch.bfloat16)
    out = token_logprobs(hidden, torch.tensor([0, 1]), nn.Linear(4, 3, dtype=torch.bfloat16))
    assert out.logprobs.dtype == out.entropy.dtype == torch.float32


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"chunk": 0}])
def test_a_temperature_or_chunk_of_zero_is_an_error(options):
    with pytest.raises(ValueError, match="must be positive"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), nn.Identity(), **options)


def test_values_go_where_the_mask_is_true_and_get_their_gradient_back():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    rows = in_rows(values, MASK)
    assert rows.tolist() == [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    (rows * torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 4.0]


def test_a_wrong_number_of_values_is_an_error():
    with pytest.raises(ValueError, match="do not fill 3"):
        in_rows(torch.zeros(2), MASK)
