# SPDX-License-Identifier: Apache-2.0
"""The tables and the curve are of the entries that all batches gave, in their order."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from ixc_lightning.callbacks import BestOfNWriter
from ixc_lightning.callbacks.curves import HEIGHT, WIDTH
from ixc_lightning.modules import BestOfNModule

pytestmark = [pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")]


def _entry(row, scores, right=None):
    candidates = [
        {"response": f"r{n}", "score": score, "tokens": 10 * (n + 1), "correct": right and right[n]}
        for n, score in enumerate(scores)
    ]
    return {"row": row, "key": f"k{row}", "best": scores.index(max(scores)), "candidates": candidates}


class Told(L.LightningModule):
    """Gives the entries that it is told, one a batch."""

    def predict_step(self, batch, batch_idx):
        return [_entry(*self.told[int(batch)])]

    curve = BestOfNModule.curve


@pytest.fixture
def written(tmp_path):
    """A run over entries that come in another order than that of their rows."""
    module = Told()
    module.told = [(1, [1.0, 3.0], [True, False]), (0, [2.0, 4.0], [False, True]), (2, [5.0, 0.0], None)]
    (tmp_path / "best_of_n/parts").mkdir(parents=True)
    (tmp_path / "best_of_n/parts/0001-00000.jsonl").write_text(
        '{"row": 9}\n'
    )  # left by a run that was killed
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=TensorBoardLogger(tmp_path, name="logs", version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BestOfNWriter()],
    )
    trainer.predict(module, DataLoader(torch.arange(3)))
    return tmp_path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_candidates_and_the_best_are_written_in_the_order_of_the_prompts(written):
    every = _lines(written / "best_of_n/candidates.jsonl")
    assert [entry["key"] for entry in every] == ["k0", "k1", "k2"]
    assert [[one["score"] for one in entry["candidates"]] for entry in every] == [[2, 4], [1, 3], [5, 0]]
    best = _lines(written / "best_of_n/best.jsonl")
    assert [(one["key"], one["response"], one["score"], one["candidate"], one["of"]) for one in best] == [
        ("k0", "r1", 4, 1, 2),
        ("k1", "r1", 3, 1, 2),
        ("k2", "r0", 5, 0, 2),
    ]


def test_the_curve_is_the_mean_over_prompts_and_counts_the_right_ones_where_that_is_known(written):
    curve = json.loads((written / "best_of_n/curve.json").read_text())
    one, two = (pytest.approx(row) for row in curve)
    assert one == {"n": 1, "score": 2.5, "tokens": 15.0, "correct": 0.5}
    assert two == {"n": 2, "score": 4.0, "tokens": 50 / 3, "correct": 0.5}


def test_the_curve_is_shown_as_a_picture_and_in_tensorboard(written):
    with Image.open(written / "best_of_n/curve.png") as picture:
        assert picture.size == (3 * WIDTH, HEIGHT)  # score, tokens, share that is right
    events = EventAccumulator(str(written / "logs/version_0")).Reload()
    scalars = events.Scalars("best_of_n/score")
    assert [event.step for event in scalars] == [1, 2]
    assert [event.value for event in scalars] == pytest.approx([2.5, 4.0])
    assert events.Tags()["images"] == ["best_of_n"]


def test_nothing_is_left_of_the_parts(written):
    assert sorted(path.name for path in (written / "best_of_n").iterdir()) == [
        "best.jsonl",
        "candidates.jsonl",
        "curve.json",
        "curve.png",
    ]
