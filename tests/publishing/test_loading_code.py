# SPDX-License-Identifier: Apache-2.0
"""The Python on a card runs as it stands, and gives what the trained model gives."""

import re

import pytest
import torch

from ixc_lightning.export import export_folder
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.publishing.card import FILE
from ixc_lightning.publishing.loading_code import Exported, loading_section
from ixc_lightning.publishing.runs import Run
from ixc_lightning.scoring import Scorer

SCORE_TOLERANCE = 1e-5  # float32 sums in another order; scores are of order one


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def executed(folder, monkeypatch):
    """What each block of an exported folder's card leaves behind, run inside the folder."""
    monkeypatch.chdir(folder)
    found = []
    for code in blocks((folder / FILE).read_text()):
        names = {"__name__": "card"}
        exec(compile(code, FILE, "exec"), names)
        found.append(names)
    return found


def test_the_card_of_a_reward_model_scores(tiny_folder, tmp_path, monkeypatch, capsys):
    model = RewardModel(str(tiny_folder))
    run = Run(reading={"video_frames": 4, "max_tokens": 64, "response_suffix": ""})
    folder = export_folder(model, str(tiny_folder), tmp_path / "out", run=run)
    (names,) = executed(folder, monkeypatch)
    assert names["scorer"].encoder.video_frames == 4
    assert names["scorer"].encoder.max_tokens == 64
    own = Scorer(model, names["scorer"].encoder).compare("What is two plus two?", "It is 4.", "It is 5.")
    assert names["verdict"].a == pytest.approx(own.a, abs=SCORE_TOLERANCE)
    assert names["verdict"].a != names["verdict"].b
    assert "a" in capsys.readouterr().out


def test_the_card_of_a_text_reward_model_gives_one_score_in_both_ways(tiny, tmp_path, monkeypatch):
    family = tiny("qwen2")
    model = RewardModel(family.folder, pooling="last")
    scores = []
    for suffix in ("", "word"):
        run = Run(reading={"response_suffix": suffix})
        folder = export_folder(model, family.folder, tmp_path / f"out{suffix}", run=run)
        ours, theirs = executed(folder, monkeypatch)
        assert type(theirs["judge"]).__name__ == "Qwen2ForSequenceClassification"
        assert theirs["score"] == pytest.approx(ours["verdict"].a, abs=SCORE_TOLERANCE)
        scores.append(theirs["score"])
    assert abs(scores[0] - scores[1]) > 100 * SCORE_TOLERANCE  # the suffix is part of what is scored


def test_the_card_of_a_model_with_a_reward_token_gives_it_behind_the_response(tiny, tmp_path, monkeypatch):
    family = tiny("qwen2")
    token = family.processor("word", add_special_tokens=False)["input_ids"][-1]
    model = RewardModel(family.folder, pooling="last", reward_token_id=token)
    folder = export_folder(
        model, family.folder, tmp_path / "out", run=Run(reading={"response_suffix": "word"})
    )
    ours, theirs = executed(folder, monkeypatch)
    assert theirs["score"] == pytest.approx(ours["verdict"].a, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("name", ["internvl", "qwen2", "internlm_xcomposer2"])
def test_the_card_of_a_policy_answers(name, tiny, tmp_path, monkeypatch):
    family = tiny(name)
    policy = Backbone(family.folder, head=True)
    folder = export_folder(policy, family.folder, tmp_path / "out")
    assert ("import ixc_lightning.models" in (folder / FILE).read_text()) == (name == "internlm_xcomposer2")
    (names,) = executed(folder, monkeypatch)
    own = policy.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in names["model"].state_dict().items())
    assert isinstance(names["answer"], str)
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_why_it_is_no_classifier_is_told(tiny, tmp_path):
    family = tiny("qwen2")
    folder = export_folder(RewardModel(family.folder), family.folder, tmp_path / "out")
    assert "does not load as `AutoModelForSequenceClassification`" in (folder / FILE).read_text()
    assert "pooling: mean" in (folder / FILE).read_text()


def test_a_pushed_model_is_named_by_its_repository():
    exported = Exported("reward", "me/mine", "M", True, 1, "float32", "P", pooling="mean")
    text = loading_section(exported, {})
    assert "Scorer.from_pretrained('me/mine')" in text
    assert "Run inside this folder" not in text
