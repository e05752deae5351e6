# SPDX-License-Identifier: Apache-2.0
"""The critic starts from the reward model, sees the pictures, and values the states before each token."""

import pytest
import torch

from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.models.critic import Critic
from tests.families import collate
from tests.rollout.prompts import of_prompts

SAME = 1e-5  # float32, sums in another order
MEAN, STD = 0.5, 2.0


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A reward model that was trained with mean pooling, with statistics of its scores."""
    judge = RewardModel(tiny("internvl").folder)
    judge.store_statistics(MEAN, STD)
    path = tmp_path_factory.mktemp("reward")
    judge.save_pretrained(path)
    return path


@pytest.fixture
def sequences(tiny):
    batch = of_prompts(collate(tiny("internvl").samples(["image", "text"])))
    return batch.prompts, join(batch.prompts, batch.reference)


@torch.no_grad()
def test_the_mean_of_its_values_is_the_normalised_score(folder, sequences):
    prompts, joined = sequences
    judge, critic = RewardModel.from_pretrained(folder), Critic(str(folder)).eval()
    values = critic(joined, critic.encode(prompts))
    mean = (values * joined.mask).sum(dim=1) / joined.mask.sum(dim=1)
    expected = judge.normalise(judge(joined, judge.encode(prompts)))
    assert torch.allclose(mean, expected, atol=SAME)


@torch.no_grad()
def test_other_pixels_have_other_values(folder, sequences):
    prompts, joined = sequences
    critic = Critic(str(folder)).eval()
    darker = {name: value * 0.5 for name, value in prompts.media.items()}
    values, others = (
        critic(joined, critic.encode(prompts._replace(media=media))) for media in (prompts.media, darker)
    )
    has_picture = (values - others).abs().amax(dim=1) > SAME
    assert has_picture.tolist() == [True, False, False, True]


@torch.no_grad()
def test_a_head_at_zero_expects_nothing(folder, sequences):
    prompts, joined = sequences
    critic = Critic(str(folder), head="zero")
    assert (critic(joined, critic.encode(prompts)) == 0).all()


def test_tower_and_projector_are_frozen_and_the_head_is_trained(folder):
    critic = Critic(str(folder))
    parts = critic.backbone.role_parameters()
    assert not any(parameter.requires_grad for parameter in parts["vision"] + parts["projector"])
    assert all(parameter.requires_grad for parameter in [*parts["language"], *critic.value.parameters()])
