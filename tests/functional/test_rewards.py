# SPDX-License-Identifier: Apache-2.0
"""Every token pays for its KL, the last real one earns the score, and masked ones get nothing."""

import numpy as np
import pytest
import torch

from ixc_lightning.functional.rewards import penalise_missing_end, sequence_rewards, shaped_rewards

EXACT = 1e-6
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


def test_rewards_agree_with_a_loop_over_tokens():
    torch.manual_seed(0)
    scores, kl = torch.randn(3), torch.randn(3, 4)
    expected = np.zeros((3, 4))
    for row in range(3):
        real = [t for t in range(4) if MASK[row, t]]
        for t in real:
            expected[row, t] = -0.3 * kl[row, t].item() + (scores[row].item() if t == real[-1] else 0)
    got = shaped_rewards(scores, kl, MASK, kl_coef=0.3)
    assert np.allclose(got.numpy(), expected, atol=EXACT)


def test_the_rewards_of_a_response_sum_to_score_less_penalised_kl():
    scores, kl = torch.tensor([2.0, 5.0, 7.0]), torch.ones(3, 4)
    rewards = shaped_rewards(scores, kl, MASK, kl_coef=0.5)
    assert sequence_rewards(rewards, MASK).tolist() == pytest.approx([2 - 1.5, 5 - 0.5, 0.0])


def test_a_score_that_is_no_number_stays_out_of_rows_without_tokens():
    rewards = shaped_rewards(torch.tensor([1.0, 1.0, float("nan")]), torch.zeros(3, 4), MASK, kl_coef=0.1)
    assert rewards.isfinite().all()


def test_a_response_without_end_pays_the_penalty():
    scores, ended = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert penalise_missing_end(scores, ended, penalty=0.75).tolist() == [1.0, 0.25]


def test_a_negative_penalty_is_an_error():
    with pytest.raises(ValueError, match="would be a reward"):
        penalise_missing_end(torch.zeros(1), torch.tensor([True]), penalty=-1.0)


def test_shapes_that_do_not_match_are_an_error(unchecked_shapes):
    with pytest.raises(ValueError, match="do not match"):
        shaped_rewards(torch.zeros(1), torch.zeros(3, 4), MASK, kl_coef=0.1)
