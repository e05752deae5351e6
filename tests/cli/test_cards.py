# SPDX-License-Identifier: Apache-2.0
"""The command that writes evaluations into the card of an exported model."""

import json

import pytest
from huggingface_hub import ModelCard

from ixc_lightning.cli.main import main, run
from ixc_lightning.metrics import RMBench, VLRewardBench
from ixc_lightning.metrics.result_files import write_results
from ixc_lightning.publishing.card import make_card
from ixc_lightning.publishing.loading_code import Exported
from ixc_lightning.types import InputError
from tests.metrics.scored import item, numbered

GROUPS = ("general", "hallucination", "reasoning")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    exported = Exported("reward", ".", "M", True, 1, "float32", "P", pooling="mean")
    make_card(exported, name="mine", run=None, base_model=None).save(folder / "README.md")
    return folder


@pytest.fixture
def scores(tmp_path):
    """A file of scores of twelve items, three of which are right and one of which is a tie."""
    scored = [item(group, [1.0, 0.5, 0.0, 0.0][n], 0.5) for group in GROUPS for n in range(4)]
    write_results(tmp_path / "scores", VLRewardBench(), str(tmp_path / "secret/model"), numbered(*scored))
    return tmp_path / "scores/vl_rewardbench.jsonl"


def _figures(folder):
    results = ModelCard.load(folder / "README.md").data.eval_results
    return {result.metric_name: result.metric_value for result in results}


def test_figures_and_tables_of_a_file_of_scores_come_into_the_card(folder, scores, capsys):
    main(["card", str(folder), "--evaluations", str(scores)])
    assert "wrote 1 evaluations into" in capsys.readouterr().out
    assert _figures(folder)["official overall"] == 0.25
    assert _figures(folder)["paper overall"] == 0.375
    text = (folder / "README.md").read_text()
    assert "### VL-RewardBench" in text
    assert "12 items" in text
    assert "Not evaluated" not in text
    assert "secret" not in text  # a model that was named by its path is shown by its name


def test_what_a_tie_counts_may_be_said(folder, scores):
    main(["card", str(folder), "--evaluations", str(scores), "--ties", "half"])
    assert _figures(folder)["official overall"] == 0.375


def test_a_folder_and_a_list_stand_for_their_files(folder, scores):
    main(["card", str(folder), "--evaluations", str(scores.parent)])
    once = (folder / "README.md").read_text()
    main(["card", str(folder), "--evaluations", json.dumps([str(scores)])])
    assert (folder / "README.md").read_text() == once


def test_what_cannot_be_used_is_named(folder, scores, tmp_path):
    def refused(message, *words):
        with pytest.raises(InputError, match=message):
            run(["card", *map(str, words)])

    refused("README.md: no such file; name a folder that `export` wrote", tmp_path, "--evaluations", scores)
    refused("no such file", folder, "--evaluations", tmp_path / "none.jsonl")
    refused("holds no .jsonl files of scores", folder, "--evaluations", folder)
    row = json.loads(scores.read_text().splitlines()[0])
    scores.write_text(json.dumps({**row, "benchmark": "mine"}) + "\n")
    refused("benchmark: 'mine' is none of .*vl_rewardbench", folder, "--evaluations", scores)
    scores.write_text(json.dumps({**row, "benchmark": RMBench.name}) + "\n")
    refused("the scores are not those of RM-Bench", folder, "--evaluations", scores)
    (folder / "README.md").write_text("---\n- a\n---\n")
    refused("its front matter cannot be read", folder, "--evaluations", scores.parent)


def test_the_old_card_stays_when_something_is_refused(folder, tmp_path):
    before = (folder / "README.md").read_text()
    with pytest.raises(InputError):
        run(["card", str(folder), "--evaluations", str(tmp_path / "none.jsonl")])
    assert (folder / "README.md").read_text() == before
