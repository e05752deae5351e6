# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning loss covers the response tokens and nothing else."""

import math

import pytest
import torch

from ixc_lightning.functional.sft import exact_match, predicting_mask, sft_loss

EXACT = 1e-6
RESPONSE = torch.tensor([[False, True, True, False], [False, False, True, True]])


def test_the_place_before_each_response_token_predicts_it():
    assert predicting_mask(RESPONSE).tolist() == [[True, True, False, False], [False, True, True, False]]


def test_loss_by_hand():
    # uniform over 4 tokens: log 4; then a logit of log 3 against three zeros: −log(3/6) = log 2
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]])
    loss = sft_loss(logits, torch.tensor([2, 0]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2, abs=EXACT)


def test_loss_of_bfloat16_logits_is_computed_in_float32():
    assert sft_loss(torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([0])).dtype == torch.float32


def test_a_batch_without_response_tokens_is_an_error():
    with pytest.raises(ValueError, match="no response token"):
        sft_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def test_one_wrong_token_spoils_its_row_alone():
    targets = torch.tensor([1, 2, 3, 0])
    logits = torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 1]), 4).float()
    assert exact_match(logits, targets, RESPONSE).tolist() == [True, False]
