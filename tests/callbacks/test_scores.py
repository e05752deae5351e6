# SPDX-License-Identifier: Apache-2.0
"""The predict command scores every response once, in order, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning as L
import pyarrow.parquet as parquet
import pytest
from filelock import FileLock

from ixc_lightning.callbacks import ScoreWriter
from ixc_lightning.datamodules import ScoringDataModule
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import ScoringModule
from ixc_lightning.scoring import Scorer
from ixc_lightning.types import InputError
from tests.digits import FRAMES, HELDOUT

pytestmark = [pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")]

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
KILL_SECONDS = 300


@pytest.fixture
def lines(tmp_path):
    """Ten prompts with one, two or three responses."""
    path = tmp_path / "in.jsonl"
    rows = [
        {"messages": f"what is {n}?", "responses": [f"it is {n + m}" for m in range(1 + n % 3)]}
        for n in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _predict(reward_folder, given, root, *, limit=None, writer=None, **options):
    data = ScoringDataModule(
        str(reward_folder), predict=str(given), **{"batch_size": 3, "video_frames": FRAMES, **options}
    )
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_predict_batches=limit,
        callbacks=[writer or ScoreWriter()],
    )
    trainer.predict(ScoringModule(partial(RewardModel, str(reward_folder)), rows_at_once=4), data)
    return trainer


def _table(root):
    return [json.loads(line) for line in (root / "scores/scores.jsonl").read_text().splitlines()]


def _parts(root):
    return [
        json.loads(line)["row"]
        for path in sorted((root / "scores/parts").iterdir())
        for line in path.read_text().splitlines()
    ]


def test_every_response_is_scored_in_order_as_from_python(reward_folder, lines, tmp_path):
    trainer = _predict(reward_folder, lines, tmp_path)
    table = _table(tmp_path)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(row["row"], row["response"]) for row in table] == [
        (n, str(m)) for n, row in enumerate(rows) for m in range(len(row["responses"]))
    ]
    scorer = Scorer.from_pretrained(reward_folder, device="cpu")
    expected = [score for row in rows for score in scorer.score_responses(row["messages"], row["responses"])]
    assert [row["score"] for row in table] == pytest.approx(expected, abs=SCORE_TOLERANCE)
    assert [row["normalised_score"] for row in table] == pytest.approx(
        [(score - 0.5) / 2.0 for score in expected], abs=SCORE_TOLERANCE
    )
    assert parquet.read_table(tmp_path / "scores/scores.parquet").to_pylist() == table
    assert trainer.predict_loop.predictions == []


@pytest.mark.parametrize(
    ("kind", "names"), [("preference", ["chosen", "rejected"]), ("instruction", ["response"])]
)
def test_shards_of_all_modalities_are_scored(kind, names, reward_folder, digits, tmp_path):
    _predict(reward_folder, digits / kind / "heldout", tmp_path, kind=kind)
    table = _table(tmp_path)
    assert [(row["row"], row["response"]) for row in table] == [
        (n, name) for n in range(HELDOUT) for name in names
    ]
    assert {row["modality"] for row in table} == {"text", "image", "multi_image", "video"}


def test_a_run_that_stopped_goes_on_and_scores_nothing_twice(reward_folder, lines, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    _predict(reward_folder, lines, whole)
    _predict(reward_folder, lines, halves, limit=2)
    assert _parts(halves) == list(range(6))
    assert not (halves / "scores/scores.jsonl").exists()
    _predict(reward_folder, lines, halves)
    assert _parts(halves) == list(range(10))
    for one, other in zip(_table(halves), _table(whole), strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=SCORE_TOLERANCE)
        assert one.pop("normalised_score") == pytest.approx(
            other.pop("normalised_score"), abs=SCORE_TOLERANCE
        )
        assert one == other


def test_a_run_that_is_complete_scores_nothing_and_writes_its_tables_again(reward_folder, lines, tmp_path):
    _predict(reward_folder, lines, tmp_path)
    before = _table(tmp_path)
    (tmp_path / "scores/scores.jsonl").unlink()
    _predict(reward_folder, lines, tmp_path)
    assert _table(tmp_path) == before
    assert _parts(tmp_path) == list(range(10))


def test_a_row_that_cannot_be_scored_is_in_the_table_with_its_reason(reward_folder, lines, tmp_path):
    with lines.open("a") as file:
        file.write('{"messages": "?", "response": "x", "images": ["no.png"]}\n')
    with pytest.raises(InputError, match=r"no\.png cannot be read"):
        _predict(reward_folder, lines, tmp_path / "raises")
    _predict(reward_folder, lines, tmp_path, batch_size=10, on_bad_sample="quarantine")
    last = _table(tmp_path)[-1]
    assert (last["row"], last["key"], last["score"]) == (10, "line 11", None)
    assert "no.png cannot be read" in last["error"]
    assert {row["row"] for row in _table(tmp_path)} == set(range(11))


def test_scores_of_another_model_or_of_other_data_are_never_mixed(
    reward_folder, lines, tmp_path, tiny_folder
):
    _predict(reward_folder, lines, tmp_path, limit=1)
    other = RewardModel.from_pretrained(reward_folder)
    other.score.weight.data.mul_(-1)
    other.save_pretrained(tmp_path / "other")
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="another run, whose model was another one"):
        _predict(tmp_path / "other", lines, tmp_path)
    with pytest.raises(InputError, match="another run, whose data was another one"):
        _predict(reward_folder, lines, tmp_path, response_suffix="!")
    assert _parts(tmp_path) == [0, 1, 2]


def test_a_finished_folder_is_not_taken_for_that_of_another_model(
    reward_folder, lines, tmp_path, tiny_folder
):
    _predict(reward_folder, lines, tmp_path)
    other = RewardModel.from_pretrained(reward_folder)
    other.store_statistics(0.0, 1.0)
    other.save_pretrained(tmp_path / "other")
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="another run, whose model was another one"):
        _predict(tmp_path / "other", lines, tmp_path)


def test_two_runs_cannot_write_to_one_folder(reward_folder, lines, tmp_path):
    (tmp_path / "scores").mkdir()
    with FileLock(tmp_path / "scores/.lock"), pytest.raises(InputError, match="another run is writing"):
        _predict(reward_folder, lines, tmp_path)


def test_scores_that_are_no_numbers_are_refused_by_name(reward_folder, lines, tmp_path, tiny_folder):
    broken = RewardModel.from_pretrained(reward_folder)
    broken.score.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"in\.jsonl:line 1: the score is no number"):
        _predict(tmp_path / "broken", lines, tmp_path)


def test_nothing_to_score_is_refused(reward_folder, tmp_path):
    data = ScoringDataModule(str(reward_folder))
    with pytest.raises(InputError, match=r"data\.predict names nothing"):
        data.setup("predict")


COMMAND = [
    *("-m", "ixc_lightning", "predict", "--config", "recipes/score.yaml"),
    *("--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.batch_size", "1"),
]


def _command(reward_folder, lines, root, *more):
    options = ["--model.model.source", str(reward_folder), "--data.predict", str(lines)]
    return [sys.executable, *COMMAND, *options, "--trainer.default_root_dir", str(root), *more]


@pytest.mark.slow
def test_a_run_that_is_killed_loses_no_row_and_scores_none_twice(reward_folder, digits, tmp_path):
    lines = tmp_path / "many.jsonl"
    rows = [{"messages": f"what is {n}?", "responses": ["it is", f"it is {n}"]} for n in range(400)]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = tmp_path / "scores/parts"
    process = subprocess.Popen(
        _command(reward_folder, lines, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline and sum(p.stat().st_size for p in parts.glob("*")) < 5_000:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = len(_whole_lines(parts))
    assert 0 < before < len(rows)
    subprocess.run(
        _command(reward_folder, lines, tmp_path), check=True, capture_output=True, timeout=KILL_SECONDS
    )
    written = _whole_lines(parts)
    assert sorted(written) == list(range(len(rows)))  # none twice, none lost
    table = _table(tmp_path)
    scorer = Scorer.from_pretrained(reward_folder, device="cpu")
    conversations = [
        [{"role": "user", "content": row["messages"]}, {"role": "assistant", "content": text}]
        for row in rows
        for text in row["responses"]
    ]
    assert [row["row"] for row in table] == [n for n in range(len(rows)) for _ in range(2)]
    assert [row["score"] for row in table] == pytest.approx(scorer.score(conversations), abs=SCORE_TOLERANCE)


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one(reward_folder, digits, tmp_path):
    shards = digits / "preference/heldout"
    _predict(reward_folder, shards, tmp_path / "one")
    command = _command(
        reward_folder, shards, tmp_path / "two", "--trainer.devices", "2", "--data.batch_size", "3"
    )
    subprocess.run(command, check=True, capture_output=True, timeout=KILL_SECONDS)
    assert len(list((tmp_path / "two/scores/parts").iterdir())) == 2
    assert sorted(_parts(tmp_path / "two")) == list(range(HELDOUT))
    one, two = _table(tmp_path / "one"), _table(tmp_path / "two")
    assert [row["key"] for row in one] == [row["key"] for row in two]
    assert [row["score"] for row in two] == pytest.approx([row["score"] for row in one], abs=SCORE_TOLERANCE)


def _whole_lines(parts: Path) -> list[int]:
    lines = [line for path in parts.glob("*") for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line)["row"] for line in lines if line.endswith(b"\n")]
