# SPDX-License-Identifier: Apache-2.0
"""Every packaged recipe parses, and the paper's says what the paper says."""

import pytest
import torch
import yaml
from transformers import Qwen2_5_VLConfig

from ixc_lightning.cli.main import main
from ixc_lightning.cli.recipes import packaged_recipes
from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.internlm_xcomposer2 import InternLMXComposer2Config
from ixc_lightning.modules.roles import backbone_of

PAPER = "recipes/paper/reward.yaml"
PAPER_PPO = "recipes/paper/ppo.yaml"
ONE_GPU = "recipes/single_gpu/reward.yaml"
ONE_GPU_PPO = "recipes/single_gpu/ppo.yaml"


@pytest.fixture
def printed(capsys):
    """The settings of a recipe as the command line understands them."""

    def read(recipe):
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", recipe, "--print_config"])
        assert ended.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return read


def test_the_recipes_that_are_promised_are_packaged():
    assert list(packaged_recipes()) == [
        "recipes/best_of_n.yaml",
        "recipes/clean.yaml",
        "recipes/evaluate/mm_rlhf_rewardbench.yaml",
        "recipes/evaluate/multimodal_rewardbench.yaml",
        "recipes/evaluate/rewardbench.yaml",
        "recipes/evaluate/rewardbench_2.yaml",
        "recipes/evaluate/rm_bench.yaml",
        "recipes/evaluate/video_rewardbench.yaml",
        "recipes/evaluate/vl_rewardbench.yaml",
        "recipes/grpo.yaml",
        "recipes/length_filter.yaml",
        "recipes/make_pairs.yaml",
        PAPER_PPO,
        PAPER,
        "recipes/ppo.yaml",
        "recipes/reward.yaml",
        "recipes/reward_for_cleaning.yaml",
        "recipes/rloo.yaml",
        "recipes/score.yaml",
        "recipes/sft.yaml",
        ONE_GPU_PPO,
        ONE_GPU,
    ]


@pytest.mark.parametrize("recipe", packaged_recipes())
def test_a_recipe_parses_and_says_in_its_header_what_it_trains(recipe, printed):
    assert printed(recipe)["model"]["class_path"].startswith("ixc_lightning.modules.")
    assert len(packaged_recipes()[recipe].read_text().splitlines()[0]) > len("# ") + 20


def test_the_paper_s_recipe_has_the_paper_s_numbers(printed):
    settings = printed(PAPER)
    module, trainer = settings["model"]["init_args"], settings["trainer"]
    model = module["model"]["init_args"]
    assert module["optimizer"]["init_args"]["lr"] == 1e-5
    per_gpu = settings["data"]["init_args"]["batch_size"]
    assert per_gpu * trainer["devices"] * trainer["accumulate_grad_batches"] == 256
    assert model["freeze"] == ["vision", "projector"]
    assert model["pooling"] == "mean"


def test_the_paper_s_ppo_recipe_has_the_paper_s_numbers(printed):
    settings = printed(PAPER_PPO)
    module, trainer = settings["model"]["init_args"], settings["trainer"]
    assert module["optimizer"]["init_args"]["lr"] == 5e-5
    assert (module["gamma"], module["gae_lambda"], module["ratio_clip"]) == (0.99, 0.95, 0.2)
    per_gpu = settings["data"]["init_args"]["batch_size"] * module["sampling"]["n"]
    assert per_gpu * trainer["devices"] == 256
    assert module["minibatch_size"] == per_gpu
    assert module["policy"]["init_args"]["freeze"] == ["vision", "projector"]
    assert module["critic"]["init_args"]["source"] == module["reward_model"]["init_args"]["source"]


def test_the_paper_s_ppo_recipe_shards_and_computes_in_bfloat16_over_float32_weights(printed):
    settings = printed(PAPER_PPO)
    module, trainer = settings["model"]["init_args"], settings["trainer"]
    assert trainer["strategy"]["class_path"].endswith("ModelParallelStrategy")
    assert trainer["strategy"]["init_args"]["data_parallel_size"] == trainer["devices"]
    assert trainer["inference_mode"] is False
    assert module["compute_dtype"] == "bfloat16"
    assert {module[role]["init_args"]["dtype"] for role in ("policy", "critic")} == {"float32"}


def test_the_paper_s_recipe_shards_and_computes_in_bfloat16_over_float32_weights(printed):
    settings = printed(PAPER)
    module, trainer = settings["model"]["init_args"], settings["trainer"]
    assert trainer["strategy"]["class_path"].endswith("ModelParallelStrategy")
    assert trainer["strategy"]["init_args"]["data_parallel_size"] == trainer["devices"]
    assert trainer["inference_mode"] is False
    assert module["compute_dtype"] == "bfloat16"
    assert module["model"]["init_args"]["dtype"] == "float32"


def _qwen():
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    vision = {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


@pytest.fixture(
    scope="module", params=[InternLMXComposer2Config, _qwen], ids=["internlm_xcomposer2", "qwen2_5_vl"]
)
def full_size(request, tmp_path_factory):
    """A folder with the config of a 7B model that the recipes name."""
    folder = tmp_path_factory.mktemp("7b")
    request.param().save_pretrained(folder)
    return {"source": str(folder), "weights": "random"}


def test_the_paper_s_reward_model_builds_at_its_full_size_and_trains_language_and_head(printed, full_size):
    settings = printed(PAPER)["model"]["init_args"]["model"]["init_args"]
    with torch.device("meta"):
        model = RewardModel(**{**settings, **full_size})
    assert 7e9 < sum(parameter.numel() for parameter in model.parameters()) < 9e9
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    language = model.backbone.role_parameters()["language"]
    assert trained == {id(parameter) for parameter in [*language, model.score.weight]}


def test_the_paper_s_four_networks_build_at_their_full_size(printed, full_size):
    settings = printed(PAPER_PPO)["model"]["init_args"]
    roles = {"policy": Backbone, "reward_model": RewardModel, "critic": Critic}
    with torch.device("meta"):
        built = {name: kind(**{**settings[name]["init_args"], **full_size}) for name, kind in roles.items()}
    for name, role in built.items():
        assert 7e9 < sum(parameter.numel() for parameter in role.parameters()) < 9e9, name
    policy = built["policy"]
    assert policy.has_head
    trained = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in policy.role_parameters()["language"]}


def _bytes(modules):
    """Bytes of the weights, those of each network once."""
    weights = {id(weight): weight for module in modules for weight in module.parameters()}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def _at_full_size(settings, full_size):
    """The settings of a model in the architecture of the 7B model, and adapters where its source has some."""
    adapter = settings.get("adapter") or {"rank": 16, "alpha": 32.0}
    return {**settings, **full_size, "adapter": LoRA(**adapter)}


def test_the_reward_model_for_one_gpu_builds_in_4_bits_and_trains_adapters_and_head(printed, full_size):
    settings = printed(ONE_GPU)["model"]["init_args"]["model"]["init_args"]
    with torch.device("meta"):
        model = RewardModel(**_at_full_size(settings, full_size))
    assert _bytes([model]) < 6.5e9
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name or name == "score.weight" for name in trained)
    assert 35e6 < sum(weight.numel() for weight in trained.values()) < 45e6  # rank 16 on all linear layers
    assert {weight.dtype for weight in trained.values()} == {torch.float32}


def test_the_roles_of_ppo_on_one_gpu_build_in_4_bits_with_one_dtype(printed, full_size):
    settings = printed(ONE_GPU_PPO)["model"]["init_args"]
    reward = printed(ONE_GPU)
    roles = {"policy": Backbone, "reward_model": RewardModel, "critic": Critic}
    own = {name: settings[name]["init_args"] for name in roles}
    assert own["policy"]["source"] == reward["model"]["init_args"]["model"]["init_args"]["source"]
    assert own["critic"]["source"] == own["reward_model"]["source"] == reward["export"]["folder"]
    assert {(role["quantisation"], role["dtype"]) for role in own.values()} == {("nf4", "bfloat16")}
    with torch.device("meta"):
        built = {name: kind(**_at_full_size(own[name], full_size)) for name, kind in roles.items()}
    assert _bytes([built["policy"]]) < 7.5e9
    bases = [
        {name: (weight.dtype, weight.shape) for name, weight in backbone_of(role).base.state_dict().items()}
        for role in built.values()
    ]
    assert bases[0] == bases[1] == bases[2]
