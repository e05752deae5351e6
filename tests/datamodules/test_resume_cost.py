# SPDX-License-Identifier: Apache-2.0
"""Going on after a million samples is no more work than after a few: operations are counted, not seconds."""

import pickle
import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ixc_lightning.datamodules import batches, index, order, resume, shards
from ixc_lightning.datamodules.base import Source
from ixc_lightning.datamodules.batches import BatchDataset
from ixc_lightning.datamodules.order import Part, TrainingOrder
from tests.digits import preference_data, trainer

BATCH = 4
EARLY, LATE = 3, 250_001
"""Steps that are done: 12 samples, and just over a million."""
PASSES = 25_000.0
"""Passes over the small digits in one epoch, so that the late place lies inside the first one too."""
COUNTED = {module.__file__: Path(module.__file__).stem for module in (batches, index, order, resume, shards)}
OF_SHARDS = ("record", "_find", "_index", "costs")
"""The rest of that module reads the members of a record, of which some have more."""
SLACK = 64
"""Bytes by which pickled whole numbers may differ in length."""
PEAK_SLACK = 1.1
SHARDS = 1000


@contextmanager
def counted():
    """Calls of the functions that look for the next batch, by module and name; and of ``open``."""
    calls = Counter()

    def note(frame, event, argument):
        name, module = frame.f_code.co_name, COUNTED.get(frame.f_code.co_filename)
        if event == "call" and module and (module != "shards" or name in OF_SHARDS):
            calls[module, name] += 1
        elif event == "c_call" and argument is open:
            calls["files", "open"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def data_of(digits, tiny_folder, **options):
    """The small digits, 25,000 times in an epoch."""
    mixture = [Source(str(digits / "preference/train"), weight=PASSES)]
    return preference_data(digits, tiny_folder, val=None, train=mixture, batch_size=BATCH, **options)


def first_batch(digits, tiny_folder, steps, **options):
    """The first batch behind some steps, and the calls from the setup on until it is there."""
    data = data_of(digits, tiny_folder, **options)
    with counted() as calls:
        data.setup("fit")
        quarantine = {"position": steps * BATCH, "seen": steps * BATCH, "counts": {}}
        state = {"position": steps * BATCH, "step": BATCH, "order": data.order.fingerprint}
        data.load_state_dict(state | {"quarantine": quarantine})
        batch = next(iter(data.train_dataloader()))
    return batch, calls


@pytest.mark.parametrize("options", [{}, {"group_by_length": 3}], ids=["plain", "grouped"])
def test_the_first_batch_takes_the_same_calls_wherever_a_run_goes_on(options, digits, tiny_folder):
    first_batch(digits, tiny_folder, 0, **options)  # what is imported and cached once is not counted
    early, calls = first_batch(digits, tiny_folder, EARLY, **options)
    late, late_calls = first_batch(digits, tiny_folder, LATE, **options)
    assert (early.position, late.position) == ((EARLY + 1) * BATCH, (LATE + 1) * BATCH)
    assert calls["shards", "record"] == BATCH
    assert calls["batches", "__getitem__"] == 1
    assert calls["files", "open"] > 0
    assert late_calls == calls


class Learner(L.LightningModule):
    """Trains one number, to have something that steps."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.number.square()

    def validation_step(self, batch, batch_idx):
        """Lightning wants one where the data could be validated on."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def moved_on(checkpoint, steps):
    """A checkpoint as it would be after so many steps of the first epoch."""
    state = torch.load(checkpoint, weights_only=True)
    done = dict.fromkeys(("ready", "started", "processed", "completed"), steps)
    loop = state["loops"]["fit_loop"]
    optimised = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress in (loop["epoch_loop.batch_progress"], optimised["step"], optimised["zero_grad"]):
        for counts in (progress["total"], progress["current"]):
            counts |= {name: steps for name in done if name in counts}
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    state["global_step"], state["callbacks"] = steps, {}
    position = {"position": steps * BATCH}
    state["PreferenceDataModule"] |= position
    state["PreferenceDataModule"]["quarantine"] |= position
    moved = checkpoint.with_name(f"{steps}.ckpt")
    torch.save(state, moved)
    return moved


def test_lightning_asks_for_the_next_batches_alone(digits, tiny_folder, tmp_path, monkeypatch):
    asked = []
    make = BatchDataset.__getitem__
    monkeypatch.setattr(
        BatchDataset, "__getitem__", lambda self, start: asked.append(start) or make(self, start)
    )
    keeper = ModelCheckpoint(tmp_path / "kept", filename="one", every_n_train_steps=1)
    first = trainer(tmp_path, max_epochs=1, max_steps=1, enable_checkpointing=True, callbacks=[keeper])
    first.fit(Learner(), data_of(digits, tiny_folder))
    for steps in (EARLY, LATE):
        checkpoint = moved_on(tmp_path / "kept/one.ckpt", steps)
        asked.clear()
        run = trainer(tmp_path, max_epochs=1, max_steps=steps + 2)
        run.fit(Learner(), data_of(digits, tiny_folder), ckpt_path=checkpoint, weights_only=True)
        assert run.global_step == steps + 2
        assert asked == [step * BATCH for step in (steps, steps + 1)]


def order_of(size, **options):
    return TrainingOrder([Part([size // SHARDS] * SHARDS)], seed=0, **options)


def test_an_order_of_a_billion_samples_is_as_small_as_one_of_a_thousand():
    small, large = order_of(10**3), order_of(10**9)
    assert (len(small), len(large)) == (10**3, 10**9)
    assert abs(len(pickle.dumps(large)) - len(pickle.dumps(small))) < SLACK


@pytest.mark.parametrize(
    "options", [{}, {"unit": 4, "pool": 8, "costs": lambda r: r % 5}], ids=["plain", "grouped"]
)
def test_a_batch_in_the_middle_needs_no_more_memory_among_a_billion(options):
    peaks = []
    for size in (10**6, 10**9):
        made = order_of(size, **options)
        tracemalloc.start()
        made.records(3, size // 2 + np.arange(8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < PEAK_SLACK * peaks[0]
