# SPDX-License-Identifier: Apache-2.0
"""Policy and critic that read a prompt once for its answers think what they think of each answer apart."""

import logging
from functools import partial

import pytest
import torch

from ixc_lightning.models import Backbone
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.packing import prepare
from ixc_lightning.modules import PPOModule
from ixc_lightning.modules.experience import by_prompt, in_place, select
from ixc_lightning.modules.pictures import Pictures
from ixc_lightning.modules.reading import read_in_parts, read_tokens, value_tokens, values_in_parts
from ixc_lightning.rollout import stack_rollout
from ixc_lightning.types import Responses
from tests.families import KINDS
from tests.models.test_packing import assert_same_gradients
from tests.modules.policies import on_policy
from tests.modules.test_learning import fit
from tests.rollout.prompts import prompt_batch

SAME = 1e-5  # float32, sums in another order
BF16 = 0.1
TEMPERATURE = 0.7
LENGTH = 5
SAMPLES = 3


def answered(it, kinds=None, *, side="left"):
    """Answers of uneven lengths, in no order and not as many to each prompt, and the prompts' batch."""
    batch = prompt_batch(it.samples(kinds), side=side)
    draws = torch.Generator().manual_seed(4)
    rows = SAMPLES * len(batch.keys)
    ids = torch.randint(42, 60, (rows, LENGTH), generator=draws)
    mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (rows, 1), generator=draws)
    rollout = stack_rollout(batch, Responses(ids * mask, mask), mask[:, -1])
    return select(rollout, torch.randperm(rows, generator=draws)[: rows - 2]), batch


@pytest.fixture(scope="module")
def roles(tiny):
    """Policy and critic of a family, with nothing frozen, ready to share."""
    built = {}

    def build(name):
        if name not in built:
            torch.manual_seed(1)
            policy = Backbone(tiny(name).folder, head=True, freeze=()).eval()
            critic = Critic(tiny(name).folder, freeze=()).eval()
            assert prepare(policy, "auto")
            assert prepare(critic.backbone, "auto")
            built[name] = policy, critic
        return built[name]

    return build


def looked(batch, policy, critic):
    return Pictures(
        batch.prompts, {"policy": policy, "critic": critic}, {"policy": "policy", "critic": "critic"}
    )


def thoughts(policy, critic, rollout, batch, *, shares):
    """Log-probabilities, entropies and values."""
    pictures = looked(batch, policy, critic)
    policy.shares = critic.backbone.shares = shares
    reading = read_tokens("policy", policy, rollout, pictures, temperature=TEMPERATURE)
    return torch.stack([*reading, value_tokens(critic, rollout, pictures)])


def gradients(policy, critic, rollout, batch, *, shares):
    policy.zero_grad()
    critic.zero_grad()
    found = thoughts(policy, critic, rollout, batch, shares=shares)
    found.mul(torch.linspace(-1, 2, found.numel()).view_as(found)).mean().backward()
    named = [*policy.named_parameters("policy"), *critic.named_parameters("critic")]
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


@pytest.mark.parametrize("family", KINDS)
def test_log_probabilities_values_and_gradients_are_those_of_answers_apart(family, tiny, roles):
    policy, critic = roles(family)
    rollout, batch = answered(tiny(family), side="right")
    with torch.no_grad():
        apart, together = (
            thoughts(policy, critic, rollout, batch, shares=shares) for shares in (False, True)
        )
    torch.testing.assert_close(together, apart, atol=SAME, rtol=0)
    assert (together == 0).any()  # masked
    apart, together = (gradients(policy, critic, rollout, batch, shares=shares) for shares in (False, True))
    assert_same_gradients(together, apart)


@pytest.mark.parametrize("kind", KINDS["internvl"])
@pytest.mark.parametrize("size", [1, 2, 64])
@torch.no_grad()
def test_answers_are_read_in_parts_of_any_size_as_all_at_once(kind, size, tiny, roles):
    policy, critic = roles("internvl")
    rollout, batch = answered(tiny("internvl"), [kind])
    wanted = thoughts(policy, critic, rollout, batch, shares=False)
    policy.shares = critic.backbone.shares = True
    pictures = looked(batch, policy, critic)
    logprobs = read_in_parts("policy", policy, rollout, pictures, temperature=TEMPERATURE, size=size)
    torch.testing.assert_close(logprobs, wanted[0], atol=SAME, rtol=0)
    values = values_in_parts(critic, rollout, pictures, size=size)
    torch.testing.assert_close(values, wanted[2], atol=SAME, rtol=0)


def test_a_prompt_is_read_once_and_without_padding(tiny, roles):
    policy, critic = roles("internvl")
    rollout, batch = answered(tiny("internvl"))
    rows = []
    hooks = [
        backbone.decoder_layers()[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
        for backbone in (policy, critic.backbone)
    ]
    thoughts(policy, critic, rollout, batch, shares=True)
    for hook in hooks:
        hook.remove()
    asked = rollout.prompt_index.unique()
    tokens = int(batch.prompts.mask[asked].sum() + rollout.responses.mask.sum())
    assert [row.shape[:2] for row in rows] == [(1, tokens)] * 2


def test_rows_of_a_prompt_go_together_and_come_back_to_their_places(tiny):
    rollout, _ = answered(tiny("qwen2"))
    parts = list(by_prompt(rollout, 4))
    assert max(map(len, parts)) == 4
    assert torch.cat([rollout.prompt_index[rows] for rows in parts]).diff().min() >= 0
    found = in_place([rollout.responses.ids[rows] for rows in parts], rollout)
    assert torch.equal(found, rollout.responses.ids)


@torch.no_grad()
def test_a_bfloat16_policy_shares(tiny):
    policy = Backbone(tiny("internvl").folder, head=True, dtype="bfloat16").eval()
    critic = Critic(tiny("internvl").folder, dtype="bfloat16").eval()
    assert prepare(policy, "auto")
    assert prepare(critic.backbone, "auto")
    rollout, batch = answered(tiny("internvl"), ["image", "text"])
    apart, together = (thoughts(policy, critic, rollout, batch, shares=shares) for shares in (False, True))
    torch.testing.assert_close(together, apart, atol=BF16, rtol=0)


def test_sharing_that_is_off_has_every_answer_read_with_its_prompt(digits, tiny_folder, tmp_path):
    def trained(sharing):
        module = on_policy(PPOModule, tiny_folder, sharing=sharing, minibatch_size=8, epochs=1)
        logged = fit(module, digits, tiny_folder, tmp_path / sharing).logged_metrics
        roles = module.policy, module.reference, module.critic.backbone
        assert {role.shares for role in roles} == {sharing == "auto"}
        return {name: value.item() for name, value in logged.items() if "ratio" in name or "loss" in name}

    assert trained("auto") == pytest.approx(trained("off"), abs=SAME)


def test_a_policy_that_cannot_share_says_why_and_trains(digits, tiny_folder, tmp_path, caplog):
    module = on_policy(PPOModule, tiny_folder)
    module.build_policy = partial(Backbone, str(tiny_folder), head=True, attention="eager")
    with caplog.at_level(logging.WARNING):
        fit(module, digits, tiny_folder, tmp_path)
    assert "prompts are read once for each response: attention is eager" in caplog.text
    assert not module.policy.shares
    assert module.critic.backbone.shares
