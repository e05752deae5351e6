# SPDX-License-Identifier: Apache-2.0
"""TensorBoard shows validation pairs with their pictures and scores, and how the scores are spread."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import AdamW

from ixc_lightning.callbacks import PreferenceExamples
from ixc_lightning.callbacks.rendering import RIGHT, WRONG, Row, render_table
from ixc_lightning.models import RewardModel
from ixc_lightning.modules import RewardModule
from ixc_lightning.types import Example
from tests.digits import HELDOUT, preference_data, trainer


def _validate(digits, tiny_folder, folder, **options):
    module = RewardModule(partial(RewardModel, str(tiny_folder)), optimizer=partial(AdamW, lr=1e-3))
    run = trainer(folder, callbacks=[PreferenceExamples(count=6)], **options)
    run.validate(module, preference_data(digits, tiny_folder), verbose=False)
    return run


@pytest.fixture(scope="module")
def events(digits, tiny_folder, tmp_path_factory):
    """What TensorBoard reads back from one validation."""
    folder = tmp_path_factory.mktemp("board")
    _validate(digits, tiny_folder, folder)
    return EventAccumulator(str(folder / "logs/version_0")).Reload()


def test_the_board_holds_one_table_and_three_histograms(events):
    assert events.Tags()["images"] == ["val/examples"]
    names = {"val/chosen_scores", "val/rejected_scores", "val/score_differences"}
    assert set(events.Tags()["histograms"]) == names


@pytest.mark.parametrize("name", ["chosen_scores", "rejected_scores", "score_differences"])
def test_a_histogram_counts_every_validation_pair(name, events):
    assert events.Histograms(f"val/{name}")[0].histogram_value.num == HELDOUT


def test_the_table_is_a_picture_with_ink_on_it(events):
    pixels = np.asarray(Image.open(io.BytesIO(events.Images("val/examples")[0].encoded_image_string)))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_a_run_without_a_board_validates_as_well(digits, tiny_folder, tmp_path):
    run = _validate(digits, tiny_folder, tmp_path, logger=False)
    assert "val/accuracy" in run.callback_metrics


def test_an_endless_text_is_cut_and_does_not_drown_the_table():
    height = [
        render_table([Row(Example("which? " * count, "two", "three", []), 1.0, 0.0)]).height
        for count in (1000, 2000)
    ]
    assert height[0] == height[1] < 300


def _colours(chosen, rejected):
    picture = render_table([Row(Example("which?", "two", "three", []), chosen, rejected)])
    return {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.getcolors(1 << 20)}


def test_a_pair_that_the_model_gets_right_is_green():
    assert RIGHT in _colours(1.0, 0.0)
    assert WRONG not in _colours(1.0, 0.0)


@pytest.mark.parametrize("scores", [(0.0, 1.0), (1.0, 1.0)])
def test_a_pair_that_the_model_gets_wrong_or_ties_is_red(scores):
    assert WRONG in _colours(*scores)
    assert RIGHT not in _colours(*scores)
