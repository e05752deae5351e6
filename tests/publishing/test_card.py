# SPDX-License-Identifier: Apache-2.0
"""The card of an exported model: what the hub reads from it, and what a person does."""

import pytest
import yaml
from huggingface_hub import ModelCard

from ixc_lightning.publishing.card import Evaluation, base_model_of, make_card, with_evaluations
from ixc_lightning.publishing.loading_code import Exported
from ixc_lightning.publishing.runs import Run
from ixc_lightning.types import InputError

REWARD = Exported(
    role="reward",
    folder=".",
    architecture="Qwen2_5_VLModel",
    is_multimodal=True,
    parameters=1234567,
    dtype="bfloat16",
    processor="Qwen2_5_VLProcessor",
    pooling="last",
    reward_token="<|reward|>",
    score_mean=0.25,
    score_std=2.0,
    why_no_classifier="it reads pictures",
)
TEXT_POLICY = REWARD._replace(role="policy", is_multimodal=False, pooling=None, reward_token=None)
RUN = Run(
    recipe={"seed_everything": 0, "model": {"init_args": {"source": "…/sft"}}},
    data=[
        {"split": "train", "folder": "p/train", "shards": 2, "samples": 12345, "domains": {"a|b": 5, "c": 7}}
        | {"sha256": "ab" * 32, "home": "Anthropic/hh-rlhf", "name": "hh_rlhf", "licence": "MIT"},
        {"split": "val", "folder": "p/heldout", "shards": 1, "samples": 16},
    ],
    dropped={"LengthRatioFilter": 3, "NearDuplicates": 0},
    metrics={"val/accuracy": 0.98765, "val/loss": 0.125},
    step=700,
    versions={"torch": "2.15.0"},
)
EVALUATION = Evaluation(
    "vl_rewardbench",
    "VL-RewardBench",
    {"official_overall": 0.65, "paper_overall": 0.66, "official_empty": float("nan")},
    "## VL-RewardBench: mine\n\n| figure | official |\n| --- | --- |\n| overall | 65.0 |\n",
)


def card(exported=REWARD, **options):
    given = {"name": "mine", "run": RUN, "base_model": "Qwen/Qwen2.5-VL-3B-Instruct", **options}
    return make_card(exported, **given)


def sections(made):
    return [line.removeprefix("## ") for line in made.text.splitlines() if line.startswith("## ")]


def test_the_front_matter_is_what_the_hub_reads():
    data = card().data
    assert data.base_model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert data.datasets == ["Anthropic/hh-rlhf"]
    assert data.library_name == "ixc_lightning"
    assert data.tags == ["ixc_lightning", "reward-model"]
    assert data.pipeline_tag is None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9877)
    assert result.dataset_name == "p/heldout"


@pytest.mark.parametrize(
    ("exported", "library", "pipeline"),
    [
        (TEXT_POLICY, "transformers", "text-generation"),
        (TEXT_POLICY._replace(is_multimodal=True), "transformers", "image-text-to-text"),
        (REWARD._replace(is_multimodal=False, classifier="Q"), "transformers", "text-classification"),
        (REWARD._replace(is_multimodal=False), "ixc_lightning", None),
    ],
)
def test_the_hub_is_told_which_library_and_task_it_is_for(exported, library, pipeline):
    data = card(exported).data
    assert (data.library_name, data.pipeline_tag) == (library, pipeline)


def test_a_card_goes_through_a_file_unchanged(tmp_path):
    made = card(evaluations=[EVALUATION])
    made.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == made.data.to_dict()
    assert loaded.text == made.text
    assert str(loaded) == str(made)


def test_every_section_is_there():
    expected = ["How to load", "Model", "Training", "Data", "Recipe", "Evaluation", "Versions"]
    assert sections(card()) == expected


def test_the_page_tells_what_the_model_is():
    text = card().text
    for shown in (
        "1,234,567",
        "Qwen2_5_VLProcessor",
        "| pooling | last |",
        "`<|reward|>`".replace("|", r"\|"),
    ):
        assert shown in text
    assert "mean 0.25, standard deviation 2" in text
    assert "After 700 steps" in text
    assert "| `val/loss` | 0.125 |" in text
    assert "| torch | 2.15.0 |" in text


def test_the_page_tells_where_the_data_come_from():
    lines = card().text.splitlines()
    train = next(line for line in lines if line.startswith("| train"))
    for shown in ("p/train", "Anthropic/hh-rlhf", "MIT", "12,345", r"a\|b 5, c 7", "| 2 |", "ab" * 32):
        assert shown in train
    assert "no manifest" in next(line for line in lines if line.startswith("| val"))
    assert "Filters left out training records: LengthRatioFilter 3." in lines


def test_the_recipe_is_yaml_that_reads_back():
    block = card().text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == RUN.recipe


def test_a_model_of_an_unknown_run_says_so_and_has_no_results():
    made = card(run=None, base_model=None)
    assert "is not recorded" in made.text
    assert made.data.eval_results is None
    assert "model-index" not in made.data.to_dict()
    assert "Training" not in sections(made)


def test_a_run_from_python_says_that_its_settings_are_not_recorded():
    assert "started from Python" in card(run=Run(metrics={"val/accuracy": 0.5})).text


def test_an_evaluation_stands_on_the_page_and_in_the_front_matter():
    made = card(evaluations=[EVALUATION])
    assert "### VL-RewardBench: mine" in made.text
    assert "| overall | 65.0 |" in made.text
    found = {(one.dataset_type, one.metric_name): one.metric_value for one in made.data.eval_results}
    assert found == {
        ("held-out", "val/accuracy"): 0.9877,
        ("vl_rewardbench", "official overall"): 0.65,
        ("vl_rewardbench", "paper overall"): 0.66,
    }


def test_new_evaluations_replace_old_ones_and_leave_the_rest(tmp_path):
    first = card(evaluations=[EVALUATION])
    edited = ModelCard(str(first).replace("## Model\n", "My own words.\n\n## Model\n"))
    newer = EVALUATION._replace(figures={"official_overall": 0.75}, page="## VL-RewardBench: newer\n\nx\n")
    made = with_evaluations(edited, [newer], name="mine")
    assert "My own words." in made.text
    assert "### VL-RewardBench: newer" in made.text
    assert "VL-RewardBench: mine" not in made.text
    found = {(one.dataset_type, one.metric_name): one.metric_value for one in made.data.eval_results}
    assert found == {("held-out", "val/accuracy"): 0.9877, ("vl_rewardbench", "official overall"): 0.75}
    assert sections(made) == sections(first)


def test_a_card_without_a_place_for_evaluations_is_refused():
    plain = ModelCard("---\nlicense: mit\n---\n\n# Mine\n")
    with pytest.raises(InputError, match="<!-- evaluation -->"):
        with_evaluations(plain, [EVALUATION], name="mine")


def test_a_model_from_a_local_folder_descends_from_what_its_card_says(tmp_path):
    assert base_model_of("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert base_model_of(str(tmp_path)) is None
    card().save(tmp_path / "README.md")
    assert base_model_of(str(tmp_path)) == "Qwen/Qwen2.5-VL-3B-Instruct"
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert base_model_of(str(tmp_path)) is None
    assert base_model_of("~/nowhere/model") is None
