# SPDX-License-Identifier: Apache-2.0
"""Policy, reference, critic and reward model on one base train as four networks do, and nothing else."""

import copy
from functools import partial

import pytest
import torch

from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.models.adapters import adapter_weights
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.one_base import Voice
from ixc_lightning.modules import GRPOModule, PPOModule, RLOOModule
from ixc_lightning.types import InputError
from tests.digits import trainer
from tests.modules.policies import on_policy
from tests.modules.test_networks import fit, interrupting

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

RATIO_TOLERANCE = 1e-5  # float32, log-probabilities computed twice in other rows
SAME = 1e-5  # float32, the same sums by other modules
RANK = LoRA(rank=4, alpha=8.0, dropout=0.1)


@pytest.fixture(scope="module")
def judge(tiny_folder, tmp_path_factory):
    """A folder of a reward model's adapters and head that are not what they start from."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(1)
    model = RewardModel(str(tiny_folder), adapter=LoRA(rank=2, saved_as="adapter"))
    with torch.no_grad():
        for weight in adapter_weights(model.backbone.base, "default").values():
            weight.normal_(std=0.1)
    model.store_statistics(0.5, 2.0)
    model.save_pretrained(folder)
    return str(folder)


def ppo(tiny, judge, *, quantisation=None, kind=PPOModule, **options):
    """A module whose four roles stand on one base."""
    build = {"quantisation": quantisation, "gradient_checkpointing": True}
    roles = {"reward_model": partial(RewardModel, judge, quantisation=quantisation)}
    if kind is PPOModule:
        roles["critic"] = partial(Critic, judge, **build)
    module = on_policy(kind, tiny, **{**roles, **options})
    module.build_policy = partial(Backbone, str(tiny), head=True, adapter=RANK, **build)
    return module


def bits(tensor):
    return tensor.detach().flatten().view(torch.uint8)


def trained(module):
    """Names of all that is trained, of all roles."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module", params=[None, "nf4"])
def run(request, digits, tiny_folder, judge, tmp_path_factory):
    """A module before and after two iterations, with the trainer."""
    module, before = ppo(tiny_folder, judge, quantisation=request.param), {}
    setup = module.on_fit_start

    def remember():
        before["state"] = {name: p.detach().clone() for name, p in module.named_parameters()}
        before["roles"] = {name: copy.deepcopy(dict(r.state_dict())) for name, r in module.roles().items()}
        setup()

    module.on_fit_start = remember
    fitted = fit(module, digits, tiny_folder, tmp_path_factory.mktemp("run"), limit_val_batches=1)
    return module, before, fitted


def test_the_base_is_in_memory_once(run):
    module = run[0]
    assert all(isinstance(voice, Voice) for voice in (module.policy, module.reference))
    backbones = [module.policy, module.reference, module.critic.backbone, module.reward_model.backbone]
    down = "language_model.layers.0.mlp.down_proj.base_layer.weight"
    assert len({backbone.base.get_parameter(down).data_ptr() for backbone in backbones}) == 1
    assert len({id(backbone.base) for backbone in backbones}) == 1
    numbers = sum(p.numel() for name, p in module.named_parameters() if ".lora_" not in name)
    alone = sum(p.numel() for p in module.base.parameters())
    heads = module.critic.value.weight.numel() + module.critic.value.bias.numel()
    heads += module.reward_model.score.weight.numel()
    adapters = sum(p.numel() for n, p in module.base.named_parameters() if ".lora_" in n)
    assert numbers == alone - adapters + heads


def test_the_first_ratio_is_one(run):
    assert run[2].logged_metrics["train/first_ratio"].item() == pytest.approx(1, abs=RATIO_TOLERANCE)


def test_training_moves_the_adapters_of_policy_and_critic_and_the_value_head_and_nothing_else(run):
    module, before, _ = run
    after = dict(module.named_parameters())
    moved = {
        name for name, weight in before["state"].items() if not torch.equal(bits(weight), bits(after[name]))
    }
    assert moved == trained(module)
    meant = (".lora_A.default.", ".lora_B.default.", ".lora_A.critic.", ".lora_B.critic.")
    assert all(any(part in name for part in meant) or name.startswith("critic.value.") for name in moved)
    assert {"critic.value.weight", "critic.value.bias"} <= moved
    assert any(".default." in name for name in moved)
    assert any(".critic." in name for name in moved)


def test_reference_and_reward_model_say_the_same_after_training_bit_for_bit(run, tiny_folder, judge):
    module, before, _ = run
    for role in ("reference", "reward_model"):
        state = module.roles()[role].state_dict()
        assert all(torch.equal(value, before["roles"][role][name]) for name, value in state.items())
    quantisation = module.base.quantisation
    ids = torch.randint(40, 60, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain = Backbone(str(tiny_folder), quantisation=quantisation, freeze=["vision", "projector", "language"])
    alone = RewardModel.from_pretrained(judge, quantisation=quantisation).backbone
    with torch.no_grad():
        assert torch.equal(module.reference(ids, mask, {}, None), plain.eval()(ids, mask, {}, None))
        ours = module.reward_model.backbone(ids, mask, {}, None)
        assert torch.equal(ours, alone(ids, mask, {}, None))
        assert not torch.allclose(module.policy(ids, mask, {}, None), plain(ids, mask, {}, None), atol=SAME)


def test_pictures_are_encoded_once_for_all_roles(run):
    assert set(run[0].eyes.values()) == {"policy"}


def test_a_checkpoint_holds_adapters_and_the_value_head_alone(run, tmp_path):
    module, _, fitted = run
    fitted.save_checkpoint(tmp_path / "small.ckpt")
    state = torch.load(tmp_path / "small.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith(("policy.adapters.", "critic.")) for name in state)
    numbers = sum(value.numel() for value in state.values())
    assert numbers == sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("quantisation", [None, "nf4"])
def test_killed_and_resumed_training_equals_training_through(
    quantisation, digits, tiny_folder, judge, tmp_path
):
    through = ppo(tiny_folder, judge, quantisation=quantisation)
    file = tmp_path / "midway.ckpt"
    interrupting(through, "score", 2, lambda: through.trainer.save_checkpoint(file))
    fit(through, digits, tiny_folder, tmp_path / "through")
    torch.manual_seed(99)  # other fresh adapters, which the checkpoint must replace
    resumed = ppo(tiny_folder, judge, quantisation=quantisation)
    again = fit(resumed, digits, tiny_folder, tmp_path / "again", checkpoint=file)
    assert again.global_step == 2
    for name, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", [PPOModule, RLOOModule, GRPOModule])
def test_one_base_learns_what_four_networks_learn(kind, digits, tiny_folder, judge, tmp_path, monkeypatch):
    def metrics(name):
        torch.manual_seed(0)
        module = ppo(tiny_folder, judge, kind=kind)
        # On a base of its own it would share prompts, whose sums round otherwise; Adam makes much of that.
        module.build_reward_model = partial(RewardModel, judge, sharing="off")
        logged = fit(module, digits, tiny_folder, tmp_path / name).logged_metrics
        own = {key: value.clone() for key, value in module.policy.state_dict().items()}
        return module, {k: v for k, v in logged.items() if "seconds" not in k and "memory" not in k}, own

    shared, one, own = metrics("one")
    assert isinstance(shared.reward_model.backbone, Voice)
    monkeypatch.setattr("ixc_lightning.modules.roles.moved", lambda *_, **__: None)  # each keeps its network
    apart, four, other = metrics("four")
    assert not isinstance(apart.reward_model.backbone, Voice)
    assert one.keys() == four.keys()
    for name in one:
        assert one[name].item() == pytest.approx(four[name].item(), abs=SAME), name
    assert all(torch.allclose(own[name], other[name], atol=SAME) for name in own)


def test_a_policy_that_starts_from_adapters_has_them_as_its_reference(digits, tiny_folder, judge, tmp_path):
    policy = Backbone(str(tiny_folder), head=True, adapter=LoRA(rank=2, saved_as="adapter"))
    with torch.no_grad():
        for weight in adapter_weights(policy.base, "default").values():
            weight.normal_(std=0.1)
    policy.save_pretrained(tmp_path / "sft")
    module = ppo(tiny_folder, judge)
    module.build_policy = partial(Backbone, str(tmp_path / "sft"), head=True)
    run = fit(module, digits, tiny_folder, tmp_path / "run", max_steps=1)
    assert run.logged_metrics["train/first_ratio"].item() == pytest.approx(1, abs=RATIO_TOLERANCE)
    assert module.reference.adapter == "reference"
    ids = torch.randint(40, 60, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(module.reference(ids, mask, {}, None), policy.eval()(ids, mask, {}, None))


def test_a_role_with_another_base_keeps_its_own_network(digits, tiny_folder, judge, tmp_path):
    other = RewardModel(str(tiny_folder))
    with torch.no_grad():
        other.backbone.base.language_model.norm.weight[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    module = ppo(tiny_folder, judge, reward_model=partial(RewardModel, str(tmp_path / "other")))
    trainer(tmp_path, max_steps=1, limit_val_batches=0).strategy.connect(module)
    module._trainer = trainer(tmp_path)
    module.configure_model()
    assert not isinstance(module.reward_model.backbone, Voice)
    assert isinstance(module.critic.backbone, Voice)


def test_a_tower_that_is_trained_is_refused_with_adapters(digits, tiny_folder, judge, tmp_path):
    module = ppo(tiny_folder, judge)
    module.build_policy = partial(Backbone, str(tiny_folder), head=True, adapter=RANK, freeze=["projector"])
    with pytest.raises(InputError, match=r"policy.freeze leaves vision to be trained"):
        fit(module, digits, tiny_folder, tmp_path)
