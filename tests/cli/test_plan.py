# SPDX-License-Identifier: Apache-2.0
"""The command that says whether a recipe fits: the large recipes do, and what cannot be planned is said."""

import json

import pytest
from transformers import Qwen2_5_VLConfig

from ixc_lightning.cli.main import main, run
from ixc_lightning.types import InputError

MODEL, POLICY = "--model.model.source", "--model.policy.source"
ROLES = (POLICY, "--model.reward_model.source", "--model.critic.source")
WIDTH = 80


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory):
    """A folder with the config of Qwen2.5-VL-7B, and nothing else."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584}
    folder = tmp_path_factory.mktemp("7b")
    Qwen2_5_VLConfig(text_config={**text, **heads}, vision_config=vision).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def planned(capsys):
    """What the command prints for programs."""

    def read(recipe, *options):
        main(["plan", "--config", recipe, *options, "--json", "true"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return read


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "sources", "gpu_gb"),
    [
        ("recipes/single_gpu/reward.yaml", [MODEL], 24),
        ("recipes/single_gpu/ppo.yaml", [POLICY], 24),
        ("recipes/paper/reward.yaml", [MODEL], 80),
        ("recipes/paper/ppo.yaml", ROLES, 80),
    ],
)
def test_a_large_recipe_fits_the_gpus_that_its_header_names(recipe, sources, gpu_gb, seven_billion, planned):
    given = [word for source in sources for word in (source, seven_billion)]
    plan = planned(recipe, *given, "--gpu_gb", str(gpu_gb))
    assert plan["fits"]
    assert gpu_gb / 4 < plan["peak_gib"] < gpu_gb
    assert plan["rows"] * plan["tokens_per_row"] < plan["token_budget"]
    assert plan["gpus"] == (1 if gpu_gb == 24 else 8)


def test_more_gpus_take_less_each_and_a_longer_pair_takes_more(tiny_folder, planned):
    def peak(tokens, *options):
        given = (MODEL, str(tiny_folder), "--tokens", str(tokens), "--response", "32", "--reserve_gb", "0")
        return planned("recipes/paper/reward.yaml", *given, *options)["peak_gib"]

    assert peak(2048, "--world", "8") < peak(2048, "--world", "2") < peak(4096, "--world", "2")


def test_the_table_says_what_does_not_fit_and_is_no_wider_than_a_terminal(tiny_folder, capsys):
    sizes = ["--tokens", "2048", "--gpu_gb", "0.01", "--reserve_gb", "0"]
    main(["plan", "--config", "recipes/reward.yaml", MODEL, str(tiny_folder), *sizes])
    shown = capsys.readouterr().out
    assert "DOES NOT FIT in 0.01 GiB" in shown
    assert max(map(len, shown.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes/score.yaml"], "ScoringModule trains no network that can be planned"),
        (["recipes/reward.yaml"], "give --tokens or --data.max_tokens"),
        (
            ["recipes/reward.yaml", "--tokens", "64", "--response", "64"],
            "--response is 64, but must be below",
        ),
        (["recipes/rloo.yaml", "--model.reward_model", "null", "--tokens", "4"], "no length of prompts"),
    ],
)
def test_what_cannot_be_planned_is_said(words, message, tiny_folder):
    source = {"recipes/reward.yaml": MODEL, "recipes/rloo.yaml": POLICY}.get(words[0])
    given = [source, str(tiny_folder)] if source else []
    with pytest.raises(InputError, match=message):
        run(["plan", "--config", *words, *given])
