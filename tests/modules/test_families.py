# SPDX-License-Identifier: Apache-2.0
"""For every family of models, with every kind of picture and either padding, PPO starts where it stands."""

from functools import partial

import pytest
import torch
from torch.optim import AdamW

from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.modules import FixedKL, PPOModule, WeightedVerifier
from ixc_lightning.rollout import Sampling
from tests.digits import trainer
from tests.families import KINDS
from tests.modules.family_data import FamilyPrompts
from tests.modules.policies import Share

SAME = 1e-5  # float32, sums in another order
QUICK = ("internvl",)
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]


class Seen(PPOModule):
    """Keeps every minibatch, what the policy thought of it, and every role's state at the start."""

    def on_train_start(self):
        self.minibatches = []
        self.before = {name: value.clone() for name, value in torch.nn.Module.state_dict(self).items()}

    def policy_losses(self, experience, reading):
        self.minibatches.append((experience, reading.logprobs.detach()))
        return super().policy_losses(experience, reading)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ratio_starts_at_one_and_only_trained_weights_move(family, side, tiny, tmp_path):
    model = tiny(family)
    module = Seen(
        partial(Backbone, model.folder, head=True),
        critic=partial(Critic, model.folder),
        reward_model=partial(RewardModel, model.folder),
        verifiers=[WeightedVerifier(Share())],
        optimizer=partial(AdamW, lr=1e-3),
        critic_optimizer=partial(AdamW, lr=1e-3),
        kl=FixedKL(0.05),
        sampling=Sampling(n=2, max_tokens=4),
        minibatch_size=2 * len(KINDS[family]),
        rows_at_once=3,  # other neighbours, and so other padding, than in the rollout
        epochs=2,
    )
    data = FamilyPrompts(model, side=side)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    passes = len(module.minibatches) // 2
    first = module.minibatches[:passes]
    assert sum(len(experience.valid) for experience, _ in first) == 2 * len(KINDS[family])
    for experience, logprobs in first:
        ratio = (logprobs - experience.logprobs)[experience.response_mask].exp()
        assert (ratio - 1).abs().max() < SAME
    later = [
        (logprobs - experience.logprobs).abs().max() for experience, logprobs in module.minibatches[passes:]
    ]
    assert max(later) > 10 * SAME  # the first step has moved the policy
    after = torch.nn.Module.state_dict(module)
    parameters = module.named_parameters(remove_duplicate=False)
    trained = {name for name, parameter in parameters if parameter.requires_grad}
    moved = {name for name in after if not torch.equal(after[name], module.before[name])}
    assert moved <= trained
    assert {name.split(".")[0] for name in moved} == {"policy", "critic"}
