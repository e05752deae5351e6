# SPDX-License-Identifier: Apache-2.0
"""From shards and a model to cleaned shards: nothing is scored twice, and results come whole."""

import json
from functools import partial

import lightning as L
import pytest

from ixc_lightning.callbacks import CleanedDataWriter
from ixc_lightning.datamodules import CleaningDataModule, ScoringDataModule
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.sources.planted_noise import convert
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import ScoringModule
from ixc_lightning.types import InputError
from tests.datamodules.broken import write_tar
from tests.datamodules.test_contrast import record
from tests.digits import FRAMES, HELDOUT

pytestmark = [pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")]

SCORE_TOLERANCE = 1e-5  # float32, sums in another order


@pytest.fixture(scope="module")
def noisy(digits, tmp_path_factory):
    """The small held-out instruction set, some of it spoilt."""
    out = tmp_path_factory.mktemp("noisy") / "set"
    convert(str(digits / "instruction/heldout"), str(out), share=0.4)
    return out


def clean(model, shards, root, *, limit=None, data=CleaningDataModule, options=None, **limits):
    settings = {"kind": "instruction", "batch_size": 4, "video_frames": FRAMES, **(options or {})}
    writer = CleanedDataWriter(**(limits or {"quantile": 0.25}))
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_predict_batches=limit,
        callbacks=[writer],
    )
    trainer.predict(
        ScoringModule(partial(RewardModel, str(model)), rows_at_once=8),
        data(str(model), predict=str(shards), **settings),
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored(root):
    """Rows that were ever scored, as often as they were."""
    return [line["row"] for path in sorted((root / "scores/parts").iterdir()) for line in lines(path)]


def summary(root):
    return json.loads((root / "cleaned/summary.json").read_text())


def test_the_lowest_scores_are_removed(reward_folder, noisy, tmp_path):
    clean(reward_folder, noisy, tmp_path)
    table = lines(tmp_path / "scores/scores.jsonl")
    lowest = sorted(table, key=lambda row: row["score"])[: HELDOUT // 4]
    removed = lines(tmp_path / "cleaned/removed.jsonl")
    assert [line["row"] for line in removed] == sorted(row["row"] for row in lowest)
    kept = SampleShards(tmp_path / "cleaned/kept", kind="instruction")
    keys = [kept.sample(number).key for number in range(len(kept))]
    assert keys == [row["key"] for row in table if row not in lowest]
    assert summary(tmp_path)["planted_noise"]["ranked_by"] == "score"
    assert (tmp_path / "cleaned/report.html").read_text().count("<article") == HELDOUT // 4 + HELDOUT * 3 // 4


def test_answers_of_others_are_scored_beside_the_own_one(reward_folder, noisy, tmp_path):
    clean(reward_folder, noisy, tmp_path, options={"others": 2}, quantile=0.25)
    table = lines(tmp_path / "scores/scores.jsonl")
    assert [row["response"] for row in table] == ["response", "other 1", "other 2"] * HELDOUT
    contrasts = {
        row: own["score"] - (one["score"] + two["score"]) / 2
        for row, (own, one, two) in enumerate(zip(table[::3], table[1::3], table[2::3], strict=True))
    }
    for line in lines(tmp_path / "cleaned/removed.jsonl"):
        assert line["contrast"] == pytest.approx(contrasts[line["row"]], abs=SCORE_TOLERANCE)
    assert {line["row"] for line in lines(tmp_path / "cleaned/removed.jsonl")} == set(
        sorted(contrasts, key=contrasts.get)[: HELDOUT // 4]
    )
    assert summary(tmp_path)["planted_noise"]["auc_by_ranking"].keys() == {"contrast", "score", "z_score"}


def test_a_run_that_stopped_goes_on_and_other_limits_score_nothing(reward_folder, noisy, tmp_path):
    clean(reward_folder, noisy, tmp_path, limit=2)
    assert scored(tmp_path) == list(range(8))
    assert not (tmp_path / "cleaned").exists()
    clean(reward_folder, noisy, tmp_path)
    assert scored(tmp_path) == list(range(HELDOUT))
    assert summary(tmp_path)["removed"] == HELDOUT // 4
    clean(reward_folder, noisy, tmp_path, quantile=0.5)
    assert scored(tmp_path) == list(range(HELDOUT))
    assert summary(tmp_path)["removed"] == HELDOUT // 2


def test_an_empty_answer_ends_the_run_or_is_listed_with_its_reason(reward_folder, tmp_path):
    write_tar(
        tmp_path / "set.tar", [(f"{n}.json", record(n, "" if n == 2 else f"it is {n}")) for n in range(6)]
    )
    with pytest.raises(InputError, match=r"'2', messages\[1\]\.content: is empty"):
        clean(reward_folder, tmp_path / "set.tar", tmp_path / "raises")
    clean(reward_folder, tmp_path / "set.tar", tmp_path, options={"on_bad_sample": "quarantine"})
    found = {line["key"]: line["reasons"] for line in lines(tmp_path / "cleaned/removed.jsonl")}
    assert "cannot be read or scored" in found.pop("2")[0]
    assert len(found) == 1
    assert (summary(tmp_path)["kept"], summary(tmp_path)["unreadable"]) == (4, 1)


def test_a_set_without_planted_noise_has_no_figures_of_it(reward_folder, digits, tmp_path):
    clean(reward_folder, digits / "instruction/heldout", tmp_path, z_score=-1.0, per=["domain", "modality"])
    assert summary(tmp_path)["planted_noise"] is None


def test_what_cannot_be_is_said_before_anything_is_scored(reward_folder, noisy, tmp_path):
    with pytest.raises(InputError, match="CleanedDataWriter needs shards to clean"):
        clean(reward_folder, noisy, tmp_path, data=ScoringDataModule)
    with pytest.raises(InputError, match="no limit is given"):
        clean(reward_folder, noisy, tmp_path, shown=3)
    (tmp_path / "cleaned").mkdir()
    (tmp_path / "cleaned/mine").write_text("dear")
    with pytest.raises(InputError, match="cleaned: exists and holds no results of cleaning"):
        clean(reward_folder, noisy, tmp_path)
    assert not (tmp_path / "scores").exists()
    with pytest.raises(InputError, match="shown is 0"):
        CleanedDataWriter(shown=0, quantile=0.1)
