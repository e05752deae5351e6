# SPDX-License-Identifier: Apache-2.0
"""The quickstart, whole: from nothing to a reward model that tells right answers from wrong ones."""

import json
import subprocess
import sys

import pytest

from ixc_lightning.cli.quickstart import accuracy_table, quickstart
from ixc_lightning.models import RewardModel
from ixc_lightning.types import MODALITIES, InputError

# The run reaches more (README); what is asserted leaves room for the arithmetic of other processors.
OVERALL, EACH = 0.85, 0.75


@pytest.mark.slow
def test_the_reward_model_is_right_on_held_out_handwriting_of_every_modality(tmp_path):
    subprocess.run([sys.executable, "-P", "-m", "ixc_lightning", "quickstart"], cwd=tmp_path, check=True)
    summary = json.loads((tmp_path / "outputs/quickstart/summary.json").read_text())
    assert summary["accuracy"].keys() == {"overall", *MODALITIES}
    assert summary["accuracy"]["overall"] >= OVERALL
    assert min(summary["accuracy"].values()) >= EACH
    assert summary["pairs"] == 2000
    assert summary["seconds"].keys() == {"data", "sft", "reward", "test"}
    model = RewardModel.from_pretrained(tmp_path / summary["paths"]["reward"])
    assert model.score_std != 1  # the moments of the validation scores came with it


def test_a_folder_of_someone_elses_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no quickstart's"):
        quickstart(str(tmp_path))
    assert (tmp_path / "thesis.txt").exists()


def test_the_table_names_every_modality():
    accuracy = {"overall": 0.9, **dict.fromkeys(MODALITIES, 0.8)}
    table = accuracy_table(accuracy, 1.0)
    assert list(table.columns[0].cells) == ["overall", "text", "image", "multi-image", "video"]
    assert list(table.columns[1].cells) == ["90.0%", *["80.0%"] * 4]
