# SPDX-License-Identifier: Apache-2.0
"""Any number of responses to each prompt, scored in parts, in every family, as each alone would be."""

import pytest
import torch

from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.models.scoring import check_suffix, score_responses
from ixc_lightning.types import InputError, Responses
from tests.families import KINDS, collate

SCORE_TOLERANCE = 1e-5  # float32, sums in another order


def _judge(tiny, name, **options):
    torch.manual_seed(1)
    return RewardModel(tiny(name).folder, **options).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "qwen3_vl", "qwen2"])
def test_each_response_scores_as_it_does_alone(name, tiny):
    judge, samples = _judge(tiny, name), tiny(name).samples()[: len(KINDS[name])]
    index = torch.tensor([0, 0, *range(1, len(samples)), len(samples) - 1])
    ids = torch.randint(40, 60, (len(index), 3))
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = []
    for row, place in enumerate(index.tolist()):
        prompts = collate([samples[place]])
        one = Responses(ids[row : row + 1], mask[row : row + 1])
        expected.append(judge(join(prompts, one), judge.encode(prompts)))
    for size in (1, 2, 100):
        found = score_responses(judge, collate(samples), Responses(ids, mask), index, size=size)
        torch.testing.assert_close(found, torch.cat(expected), atol=SCORE_TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_rank_with_fewer_responses_makes_as_many_passes_and_pictures_are_encoded_once(tiny, monkeypatch):
    judge, samples = _judge(tiny, "internvl"), tiny("internvl").samples(["image"])[:1]
    ids = torch.randint(40, 60, (3, 3))
    arguments = (judge, collate(samples), Responses(ids, ids != 0), torch.zeros(3, dtype=torch.long))
    expected = score_responses(*arguments, size=2)
    passes, looks, encode = [], [], judge.encode
    judge.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(judge, "encode", lambda prompts: looks.append(1) or encode(prompts))
    assert torch.equal(score_responses(*arguments, size=2, passes=5), expected)
    assert (len(passes), len(looks)) == (5, 1)


def test_the_reward_token_must_stand_behind_every_response(tiny):
    judge = _judge(tiny, "qwen2", pooling="last", reward_token_id=7)
    check_suffix(judge, [3, 7])
    for suffix in ([], [7, 3]):
        with pytest.raises(InputError, match="token 7, which no response ends with: give response_suffix"):
            check_suffix(judge, suffix)
    check_suffix(_judge(tiny, "qwen2", pooling="token", reward_token_id=7), [7, 3])
    check_suffix(_judge(tiny, "qwen2"), [])
