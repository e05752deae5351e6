# SPDX-License-Identifier: Apache-2.0
"""Rows of a rollout that are read: filled up to the count of another rank, and with a reward token behind."""

import torch

from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.modules.experience import filled
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.modules.reading import followed, score_in_parts
from tests.modules.policies import same_judge
from tests.rollout.prompts import STOP, rollout_of

REWARD_TOKEN = 9
SAME = 1e-6  # float32, rows of other lengths beside them


def test_rows_that_fill_a_rollout_up_count_nowhere_and_leave_its_own_alone():
    own = rollout_of([[5, 6, STOP], [7, STOP, 0]])
    more = filled(own, 5)
    assert torch.equal(more.responses.ids[:2], own.responses.ids)
    assert torch.equal(more.responses.ids[2:], own.responses.ids[:1].expand(3, -1))
    assert more.real.tolist() == [True, True, False, False, False]
    assert more.prompt_index.tolist() == [0, 1, 0, 0, 0]
    assert filled(own, 2) is own


def test_tokens_behind_a_response_follow_its_last_one_without_a_gap():
    rollout = rollout_of([[5, 6, STOP], [7, STOP, 0]])
    sequences = join(rollout.prompts, followed(rollout.responses, [8, REWARD_TOKEN]))
    assert sequences.ids.tolist() == [[1, 5, 6, STOP, 8, REWARD_TOKEN], [1, 7, STOP, 8, REWARD_TOKEN, 0]]
    assert sequences.mask.tolist() == [[True] * 6, [True] * 5 + [False]]


@torch.no_grad()
def test_a_reward_model_that_reads_a_token_scores_a_rollout_with_the_token_behind_it(tiny_folder):
    judge = same_judge(str(tiny_folder)).eval()
    reading = RewardModel(str(tiny_folder), pooling="token", reward_token_id=REWARD_TOKEN).eval()
    reading.score.load_state_dict(judge.score.state_dict())
    rollout = rollout_of([[5, 6, STOP], [7, STOP, 0], [6, 6, 6]])
    pictures = Pictures(rollout.prompts, {"reward_model": reading}, {"reward_model": "reward_model"})
    found = score_in_parts(reading, rollout, pictures, size=2, suffix=[8, REWARD_TOKEN])
    texts = ([1, 5, 6, STOP, 8, REWARD_TOKEN], [1, 7, STOP, 8, REWARD_TOKEN], [1, 6, 6, 6, 8, REWARD_TOKEN])
    for score, text in zip(found, texts, strict=True):
        ids = torch.tensor([text])
        hidden = reading.backbone(ids, torch.ones_like(ids, dtype=torch.bool), {}, None)
        torch.testing.assert_close(score, reading.score(hidden[:, -1])[0, 0], atol=SAME, rtol=SAME)
