# SPDX-License-Identifier: Apache-2.0
"""A run that stops and goes on sees what one that never stopped sees, on any number of ranks and workers."""

from random import Random

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ixc_lightning.datamodules.batches import BatchDataset, ResumingLoader, StepSampler
from ixc_lightning.datamodules.collate import Collator
from ixc_lightning.datamodules.order import Part, TrainingOrder
from ixc_lightning.datamodules.processing import Encoded
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError
from tests.digits import PAIRS, preference_data, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes"),
]

CASES = 200
WORLDS = (1, 2, 4)
WORKERS = (0, 1, 3)


class KeysAlone(Collator):
    """Batches that are the keys of their records: what comes when, without the work."""

    def __init__(self):
        """No encoder."""

    def encode(self, record):
        return Encoded(torch.zeros(1), {}, {}, [])

    def collate(self, samples, *, real, position, bad):
        keys = [record.key for (record, _), is_real in zip(samples, real, strict=True) if is_real]
        return keys, position


def go_on(records, order, start, *, world, workers, batch_size, steps):
    """Keys of the next steps of all ranks from ``start`` on, and where they end."""
    loaders = []
    for rank in range(world):
        batches = BatchDataset(
            records,
            order,
            KeysAlone(),
            batch_size=batch_size,
            rank=rank,
            world_size=world,
            keeps_going=False,
        )
        sampler = StepSampler(batches, lambda: (start, 0))
        loaders.append(ResumingLoader(batches, batch_size=None, sampler=sampler, num_workers=workers))
    seen = []
    for number, ranks in enumerate(zip(*loaders, strict=True)):
        if number == steps:
            break
        assert len({position for _, position in ranks}) == 1
        seen += [key for keys, _ in ranks for key in keys]
        start = ranks[0][1]
    return seen, start


def assert_goes_on(records, case):
    """Stop a run at random places, each time with other ranks and workers, and compare with the order."""
    random = Random(case)
    unit = random.choice((1, 4))
    order = TrainingOrder(
        [Part(records.counts)], seed=case, unit=unit, pool=random.choice((0, 2)), costs=records.costs
    )
    position, seen = 0, []
    while position < 2 * len(order):
        keys, position = go_on(
            records,
            order,
            position,
            world=random.choice(WORLDS),
            workers=random.choice(WORKERS) if case % 20 == 0 else 0,  # processes are slow to start
            batch_size=random.choice((1, 3, 4)),
            steps=random.randint(1, 7),
        )
        seen += keys
    size = len(order)
    expected = [
        records.place(int(index))[1]
        for epoch in (0, 1)
        for index in order.records(epoch, torch.arange(size).numpy())
    ]
    assert seen == expected


@pytest.fixture(scope="module")
def records(digits):
    return ShardDataset(digits / "preference/train", kind="preference")


@pytest.mark.parametrize("case", [1, 2, 3, 5, 6])
def test_ranks_that_come_and_go_see_the_order_of_one_that_stays(case, records):
    assert_goes_on(records, case)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_ranks_and_workers_that_come_and_go_see_the_order_of_one_that_stays(part, records):
    for case in range(CASES):
        if case % 4 == part:
            assert_goes_on(records, case)


class Recorder(L.LightningModule):
    """Trains one number by how long the keys are, and remembers every batch."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.keys))
        return self.number.square()

    def validation_step(self, batch, batch_idx):
        """Lightning wants one where the data could be validated on."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(digits, tiny_folder, folder, *, stop=-1, checkpoint=None, trainer_options=None, **options):
    """What a run of two epochs sees, up to ``stop`` steps, and where its last checkpoint is."""
    module = Recorder()
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(
        folder,
        max_steps=stop,
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[keeper],
        **(trainer_options or {}),
    )
    data = preference_data(digits, tiny_folder, val=None, **options)
    run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module.seen, folder / f"step={run.global_step}.ckpt"


@pytest.mark.parametrize("stop", [2, 6, 7, 11])
def test_lightning_goes_on_inside_an_epoch_and_at_its_end(stop, digits, tiny_folder, tmp_path):
    whole, _ = fit(digits, tiny_folder, tmp_path / "whole")
    before, checkpoint = fit(digits, tiny_folder, tmp_path / "before", stop=stop)
    behind, _ = fit(digits, tiny_folder, tmp_path / "behind", checkpoint=checkpoint)
    assert len(whole) == 2 * PAIRS // 8
    assert before + behind == whole


def test_lightning_goes_on_with_batches_of_another_size(digits, tiny_folder, tmp_path):
    """As on another number of ranks: the epoch has other steps, and each sample still comes once."""
    whole, _ = fit(digits, tiny_folder, tmp_path / "whole")
    before, checkpoint = fit(digits, tiny_folder, tmp_path / "before", stop=2)
    behind, _ = fit(digits, tiny_folder, tmp_path / "behind", checkpoint=checkpoint, batch_size=12)
    assert [key for _, keys in before + behind for key in keys] == [key for _, keys in whole for key in keys]
    assert [epoch for epoch, _ in behind] == [0] * 3 + [1] * 4


def test_a_limited_epoch_begins_the_next_one_anew(digits, tiny_folder, tmp_path):
    limit = {"limit_train_batches": 3}
    whole, _ = fit(digits, tiny_folder, tmp_path / "whole", trainer_options=limit)
    before, checkpoint = fit(digits, tiny_folder, tmp_path / "before", stop=3, trainer_options=limit)
    behind, _ = fit(digits, tiny_folder, tmp_path / "b", checkpoint=checkpoint, trainer_options=limit)
    assert before + behind == whole
    assert len(whole) == 6


def test_a_checkpoint_of_other_data_is_refused(digits, tiny_folder, tmp_path):
    _, checkpoint = fit(digits, tiny_folder, tmp_path / "before", stop=2)
    with pytest.raises(InputError, match="other training data, or another seed"):
        fit(digits, tiny_folder, tmp_path / "behind", checkpoint=checkpoint, seed=1)


def test_a_batch_that_failed_is_trained_on_again(digits, tiny_folder, tmp_path):
    class Fails(Recorder):
        def training_step(self, batch, batch_idx):
            if len(self.seen) == 3:
                self.trainer.save_checkpoint(tmp_path / "failed.ckpt")
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    module, data = Fails(), preference_data(digits, tiny_folder, val=None)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path, max_epochs=1, max_steps=-1).fit(module, data)
    behind, _ = fit(digits, tiny_folder, tmp_path / "behind", checkpoint=tmp_path / "failed.ckpt")
    whole, _ = fit(digits, tiny_folder, tmp_path / "whole")
    assert module.seen + behind == whole
