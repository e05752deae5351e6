# SPDX-License-Identifier: Apache-2.0
"""An experience written by hand: two answers to each of two prompts, one of them not valid."""

from __future__ import annotations

import torch

from ixc_lightning.functional.rewards import shaped_rewards
from ixc_lightning.modules.experience import Experience
from tests.rollout.prompts import STOP, rollout_of

KL_COEF = 0.5


def experience() -> Experience:
    """Rows 0 and 2 answer prompt 0, rows 1 and 3 prompt 1; row 3 has no valid score."""
    rollout = rollout_of([[5, 6, STOP], [7, STOP, 0], [8, 9, 4], [5, STOP, 0]])
    rollout = rollout._replace(prompt_index=torch.tensor([0, 1, 0, 1]))
    valid = torch.tensor([True, True, True, False])
    mask = rollout.responses.mask & valid[:, None]
    draws = torch.Generator().manual_seed(0)
    first, second, values = (torch.randn(mask.shape, generator=draws) * mask for _ in range(3))
    scores = torch.tensor([2.0, 1.0, -1.0, 0.0])
    kl = (first - second) * mask
    return Experience(
        rollout=rollout,
        valid=valid,
        response_mask=mask,
        scores=scores,
        logprobs=first,
        ref_logprobs=second,
        kl=kl,
        rewards=shaped_rewards(scores, kl, mask, kl_coef=KL_COEF),
        values=values,
        advantages=torch.zeros_like(values),
        returns=torch.zeros_like(values),
    )
