# SPDX-License-Identifier: Apache-2.0
"""A recipe is found by name wherever the command runs, and a person's own file comes first."""

import pytest

from ixc_lightning.cli.main import main
from ixc_lightning.cli.recipes import find_recipe, find_recipes, packaged_recipes
from ixc_lightning.types import InputError


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_packaged_recipe_is_found_from_any_directory(elsewhere):
    assert find_recipe("recipes/reward.yaml") == str(packaged_recipes()["recipes/reward.yaml"])


def test_a_file_in_the_working_directory_wins_over_the_packaged_recipe(elsewhere):
    own = elsewhere / "recipes/reward.yaml"
    own.parent.mkdir()
    own.write_text("seed_everything: 1\n")
    assert find_recipe("recipes/reward.yaml") == "recipes/reward.yaml"


def test_an_unknown_recipe_is_one_message_with_the_closest_name_and_the_listing_command(elsewhere):
    with pytest.raises(InputError) as error:
        find_recipe("recipes/rewards.yaml")
    assert "did you mean recipes/reward.yaml?" in str(error.value)
    assert "python -m ixc_lightning recipes" in str(error.value)


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_both_forms_of_the_option_are_understood(option, elsewhere):
    path = str(packaged_recipes()["recipes/sft.yaml"])
    assert find_recipes(["fit", option, "recipes/sft.yaml"]) == ["fit", option, path]
    assert find_recipes(["fit", f"{option}=recipes/sft.yaml"]) == ["fit", f"{option}={path}"]


def test_other_words_stay_as_they_are(elsewhere):
    words = ["fit", "--model.model.source", "recipes/sft.yaml", "--trainer.max_steps=2"]
    assert find_recipes(words) == words


def test_recipes_lists_every_recipe_with_the_first_line_of_its_header(capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(packaged_recipes())
    for line, path in zip(lines, packaged_recipes().values(), strict=True):
        assert line.endswith(path.read_text().splitlines()[0].removeprefix("# "))
