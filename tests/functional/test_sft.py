# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning loss covers the response tokens and nothing else, and never holds all their logits."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ixc_lightning.functional.sft import exact_match, predict_tokens, predicting_mask, sft_loss, token_rows
from ixc_lightning.planning.rehearsal import Live

EXACT = 1e-6
CLOSE = 1e-5  # float32 softmax over a small vocabulary, against float64
RESPONSE = torch.tensor([[False, True, True, False], [False, False, True, True]])
PLACES, WIDTH, CHUNK = 256, 4, 8


def _case(places=7, width=WIDTH, vocabulary=11):
    torch.manual_seed(0)
    hidden = torch.randn(places, width, requires_grad=True)
    return hidden, torch.randint(0, vocabulary, (places,)), nn.Linear(width, vocabulary, bias=False)


def _reference(hidden, targets, weight, weights):
    """The loss and its gradients by loops over places, in float64: ∂ℓ/∂z = π − onehot(y)."""
    loss, of_hidden, of_weight = 0.0, np.zeros(hidden.shape), np.zeros(weight.shape)
    for n, (state, token) in enumerate(zip(np.float64(hidden), targets, strict=True)):
        z = np.float64(weight) @ state
        p = np.exp(z) / np.exp(z).sum()
        loss -= weights[n] * math.log(p[token])
        slope = weights[n] * (p - (np.arange(len(p)) == token))
        of_hidden[n] = slope @ np.float64(weight)
        of_weight += np.outer(slope, state)
    return loss, of_hidden, of_weight


def _bytes(vocabulary, *, places=PLACES, chunk=CHUNK):
    """Bytes that are kept between forward and backward pass, and the most that were alive."""
    hidden, targets, head = _case(places, vocabulary=vocabulary)
    with Live() as live:
        for tensor in (hidden, targets, head.weight):
            live.forget(tensor)
        loss = sft_loss(predict_tokens(hidden, targets, head, chunk=chunk).losses)
        kept = live.now
        loss.backward()
    return kept, live.peak


def test_the_place_before_each_response_token_predicts_it():
    assert predicting_mask(RESPONSE).tolist() == [[True, True, False, False], [False, True, True, False]]


def test_loss_by_hand():
    # uniform over 4 tokens: log 4; then a logit of log 3 against three zeros: −log(3/6) = log 2
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]])
    losses = predict_tokens(logits, torch.tensor([2, 0]), nn.Identity()).losses
    assert losses.tolist() == pytest.approx([math.log(4), math.log(2)], abs=EXACT)
    assert sft_loss(losses).item() == pytest.approx((math.log(4) + math.log(2)) / 2, abs=EXACT)
    weighted = sft_loss(losses, weights=torch.tensor([0.5, 2.0]))
    assert weighted.item() == pytest.approx(math.log(4) / 2 + 2 * math.log(2), abs=EXACT)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_loss_and_gradients_are_those_of_loops_in_float64_at_any_chunk(chunk):
    hidden, targets, head = _case()
    weights = torch.linspace(0, 1, len(targets))
    loss = sft_loss(predict_tokens(hidden, targets, head, chunk=chunk).losses, weights=weights)
    loss.backward()
    values = (hidden.detach().numpy(), targets.tolist(), head.weight.detach().numpy(), weights.tolist())
    expected, of_hidden, of_weight = _reference(*values)
    assert loss.item() == pytest.approx(expected, abs=CLOSE)
    assert np.abs(hidden.grad.numpy() - of_hidden).max() < CLOSE
    assert np.abs(head.weight.grad.numpy() - of_weight).max() < CLOSE


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_vocabulary():
    assert _bytes(1000)[0] == _bytes(4000)[0] < 4 * PLACES * 1000


def test_all_logits_never_exist_together():
    vocabulary, number = 4000, 4
    head, logits = WIDTH * vocabulary * number, PLACES * vocabulary * number
    assert _bytes(vocabulary, chunk=PLACES)[1] > logits
    assert _bytes(vocabulary)[1] < logits / 4
    # twice the places are no more logits, but twice the losses, tokens and gradients of states
    more = _bytes(vocabulary, places=2 * PLACES)[1] - _bytes(vocabulary)[1]
    assert more < head < logits


def test_loss_of_bfloat16_logits_is_computed_in_float32():
    hidden = torch.zeros(1, 4, dtype=torch.bfloat16)
    assert predict_tokens(hidden, torch.tensor([0]), nn.Identity()).losses.dtype == torch.float32


def test_a_batch_without_response_tokens_is_an_error():
    with pytest.raises(ValueError, match="no response token"):
        sft_loss(torch.zeros(0))


def test_one_wrong_token_spoils_its_row_alone():
    targets = torch.tensor([1, 2, 3, 0])
    logits = torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 1]), 4).float()
    predictions = predict_tokens(logits, targets, nn.Identity(), chunk=3)
    assert predictions.is_likeliest.tolist() == [True, True, True, False]
    assert exact_match(predictions.is_likeliest, RESPONSE).tolist() == [True, False]


def test_tokens_of_the_rows_that_count():
    assert token_rows(RESPONSE, torch.tensor([False, True])).tolist() == [0.0, 0.0, 1.0, 1.0]
