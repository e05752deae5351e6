# SPDX-License-Identifier: Apache-2.0
"""TensorBoard shows what a policy answers to validation prompts, with pictures, scores and answers."""

import io

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ixc_lightning.callbacks import RolloutExamples, rollouts
from ixc_lightning.callbacks.rendering import INK, RIGHT, WRONG
from ixc_lightning.datamodules import PromptDataModule
from ixc_lightning.types import Answers, InputError
from tests.digits import FRAMES, HELDOUT, trainer

BATCH = 5  # the last batch of sixteen prompts has one real row


class Parrot(L.LightningModule):
    """Answers every prompt with its answer, and with its key and the number of the sample."""

    verifies = True

    def validation_step(self, batch, batch_idx):
        size = len(batch.keys)
        right = torch.tensor([True] * size)
        greedy = Answers(list(batch.answers), torch.full((size,), 0.5), right if self.verifies else None)
        texts = [f"{key} {number}" for number in range(2) for key in batch.keys]
        return {"greedy": greedy, "sampled": Answers(texts, torch.arange(2.0 * size), ~right.repeat(2))}


def _data(digits, tiny_folder):
    return PromptDataModule(
        str(tiny_folder), val=str(digits / "prompt/heldout"), batch_size=BATCH, video_frames=FRAMES
    )


def _validate(module, digits, tiny_folder, folder, **options):
    run = trainer(folder, callbacks=[RolloutExamples(count=6)], **options)
    run.validate(module, _data(digits, tiny_folder), verbose=False)
    return run


@pytest.fixture(scope="module")
def panels():
    """The panels that were drawn last."""
    return []


@pytest.fixture(scope="module")
def events(digits, tiny_folder, tmp_path_factory, panels):
    """What TensorBoard reads back from one validation."""
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        draw = rollouts.render_panels
        patch.setattr(rollouts, "render_panels", lambda drawn: draw(panels.extend(drawn) or drawn))
        _validate(Parrot(), digits, tiny_folder, folder)
    return EventAccumulator(str(folder / "logs/version_0")).Reload()


def test_the_board_holds_one_table_and_a_histogram_of_each_way_of_drawing(events):
    assert events.Tags()["images"] == ["val/rollouts"]
    assert set(events.Tags()["histograms"]) == {"val/greedy_scores", "val/sampled_scores"}


@pytest.mark.parametrize(("name", "samples"), [("greedy", 1), ("sampled", 2)])
def test_a_histogram_counts_every_response_to_a_real_prompt(name, samples, events):
    assert events.Histograms(f"val/{name}_scores")[0].histogram_value.num == samples * HELDOUT


def test_the_table_is_a_picture_with_ink_on_it(events):
    pixels = np.asarray(Image.open(io.BytesIO(events.Images("val/rollouts")[0].encoded_image_string)))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.mark.usefixtures("events")
def test_a_panel_has_the_prompt_the_pictures_the_answer_and_the_responses_of_one_record(
    panels, digits, tiny_folder
):
    data = _data(digits, tiny_folder)
    data.setup("validate")
    records = data.dataset("val")
    assert len(panels) == 6
    for panel, place in zip(panels, (0, 3, 6, 9, 12, 15), strict=True):
        record, key = records.record(place), records.name(place)
        row, size = place % BATCH, min(BATCH, len(records) - place // BATCH * BATCH)
        assert [text for text, _ in panel.paragraphs] == [
            "".join(part.get("text", "") for part in record.parts),
            f"answer: {record.answer}",
            f"greedy +0.50: {record.answer}",
            f"sampled {row:+.2f}: {key} 0",
            f"sampled {row + size:+.2f}: {key} 1",
        ]
        assert [colour for _, colour in panel.paragraphs] == [INK, INK, RIGHT, WRONG, WRONG]
        assert len(panel.pictures) == len(data.example("val", key).pictures)


def test_responses_that_nothing_verified_are_neither_right_nor_wrong(digits, tiny_folder):
    data = _data(digits, tiny_folder)
    data.setup("validate")
    module = Parrot()
    module.verifies = False
    answers = module.validation_step(next(iter(data.val_dataloader())), 0)
    said = rollouts._said(answers["greedy"], 0, BATCH)
    assert [one.correct for one in said] == [None]
    panel = rollouts._panel(data, rollouts.Shown(data.dataset("val").name(0), "4", {"greedy": said}))
    assert panel.paragraphs[-1][1] == INK


def test_a_record_without_an_answer_is_neither_right_nor_wrong(digits, tiny_folder):
    data = _data(digits, tiny_folder)
    data.setup("validate")
    said = rollouts.Said("yes", 1.0, False)
    panel = rollouts._panel(data, rollouts.Shown(data.dataset("val").name(0), None, {"greedy": [said]}))
    assert [colour for _, colour in panel.paragraphs] == [INK, INK]


def test_a_run_without_a_board_validates_as_well(digits, tiny_folder, tmp_path):
    _validate(Parrot(), digits, tiny_folder, tmp_path, logger=False)


def test_a_module_that_answers_nothing_is_refused(digits, tiny_folder, tmp_path):
    class Mute(L.LightningModule):
        def validation_step(self, batch, batch_idx):
            return torch.zeros(())

    with pytest.raises(InputError, match="Mute validates without any: leave the callback out"):
        _validate(Mute(), digits, tiny_folder, tmp_path)
