# SPDX-License-Identifier: Apache-2.0
"""The datamodules: seed and epoch fix the order, ranks share it out, and mistakes are named with a fix."""

import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.trainer.states import TrainerState

from ixc_lightning.datamodules.filters import Filter
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.types import InputError, InstructionBatch, PreferenceBatch
from tests.digits import FRAMES, HELDOUT, PAIRS, instruction_data, preference_data, trainer

MAKERS = {"preference": preference_data, "instruction": instruction_data}
both_kinds = pytest.mark.parametrize("kind", MAKERS)


class OnlyText(Filter):
    """Keeps the records without pictures."""

    def keep(self, record, encoder):
        return record.modality == "text"


class Recorder(L.LightningModule):
    """Trains one number, and remembers the keys that it sees in each epoch."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.epochs, self.validated = {}, 0

    def training_step(self, batch, batch_idx):
        self.epochs.setdefault(self.current_epoch, []).extend(batch.keys)
        return self.number.square()

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch.keys)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def data(digits, tiny_folder):
    """A datamodule set up to fit, by kind; ``rank`` and ``world`` stand for those of a trainer."""

    def build(kind="preference", *, rank=0, world=1, accelerator=None, **options):
        module = MAKERS[kind](digits, tiny_folder, **options)
        module.trainer = Mock(
            spec=L.Trainer,
            world_size=world,
            global_rank=rank,
            accelerator=accelerator or CPUAccelerator(),
            limit_val_batches=1.0,
            limit_train_batches=1.0,
            current_epoch=0,
            log_dir=None,
            state=TrainerState(),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(restarting=False)),
        )
        module.setup("fit")
        return module

    return build


def keys(loader, epoch=None):
    """Keys of all real rows of an epoch; without a number, of what training has before it."""
    if epoch is not None:
        loader.sampler.begin = lambda: (epoch * len(loader.dataset.order), 0)
    return [key for batch in loader for key in real_keys(batch)]


def real_keys(batch):
    return [key for key, real in zip(batch.keys, batch.real.tolist(), strict=True) if real]


def steps(loader, epoch=0):
    """Keys of the real rows of each step."""
    loader.sampler.begin = lambda: (epoch * len(loader.dataset.order), 0)
    return [real_keys(batch) for batch in loader]


def names(dataset):
    return [":".join(dataset.place(index)) for index in range(len(dataset))]


def tensors(batch):
    """Every tensor of a batch, in a fixed order."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else []
    return [tensor for value in values for tensor in tensors(value)]


@both_kinds
def test_an_epoch_gives_every_training_record_once(kind, data):
    module = data(kind)
    assert sorted(keys(module.train_dataloader())) == sorted(names(module.dataset("train")))


@both_kinds
def test_the_order_is_the_same_for_the_same_seed_and_epoch(kind, data):
    orders = [keys(data(kind, seed=3).train_dataloader(), epoch=2) for _ in range(2)]
    assert orders[0] == orders[1]


def test_the_order_differs_by_epoch_and_by_seed(data):
    loader = data(seed=3).train_dataloader()
    first, second = keys(loader, epoch=0), keys(loader, epoch=1)
    other = keys(data(seed=4).train_dataloader(), epoch=0)
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second
    assert first != other


def test_the_order_does_not_depend_on_the_global_seed(data):
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        orders.append(keys(data().train_dataloader()))
    assert orders[0] == orders[1]


@both_kinds
def test_worker_processes_give_the_batches_that_none_gives(kind, data):
    batches = [list(data(kind, num_workers=workers).train_dataloader()) for workers in (0, 2)]
    for alone, parallel in zip(*batches, strict=True):
        assert alone.keys == parallel.keys
        for here, there in zip(tensors(alone), tensors(parallel), strict=True):
            assert torch.equal(here, there)


def test_two_ranks_share_the_training_records_out(data):
    ranks = [keys(data(rank=rank, world=2).train_dataloader()) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    assert sorted(ranks[0] + ranks[1]) == sorted(keys(data().train_dataloader()))


@pytest.mark.parametrize("batch_size", [8, 7])
def test_ranks_share_each_step_of_the_order_of_one(batch_size, data):
    ranks = [
        steps(data(rank=rank, world=3, batch_size=batch_size).train_dataloader(), epoch=1)
        for rank in range(3)
    ]
    together = [key for step in zip(*ranks, strict=True) for part in step for key in part]
    assert together == keys(data().train_dataloader(), epoch=1)


def test_ranks_share_the_validation_records_each_once(data):
    ranks = [steps(data(rank=rank, world=3, eval_batch_size=5).val_dataloader()) for rank in range(3)]
    assert [len(steps_of_rank) for steps_of_rank in ranks] == [2, 2, 2]
    together = [key for step in zip(*ranks, strict=True) for part in step for key in part]
    assert together == names(data().dataset("val"))


def test_a_rank_with_nothing_left_gets_a_row_that_counts_nowhere(data):
    batches = list(data(rank=1, world=2, batch_size=PAIRS).train_dataloader())
    assert [batch.real.tolist() for batch in batches] == [[False]]
    assert batches[0].keys[0] in names(data().dataset("train"))


@both_kinds
def test_evaluation_gives_every_record_in_the_order_of_the_shards(kind, data, digits):
    shards = {split: str(digits / kind / "heldout") for split in ("val", "test", "predict")}
    module = data(kind, **shards, eval_batch_size=5)
    for split in shards:
        loader = getattr(module, f"{split}_dataloader")()
        assert keys(loader, epoch=1) == names(module.dataset(split))
        assert len(loader) == -(-HELDOUT // 5)


def test_the_last_batch_holds_what_is_left(data):
    loader = data(batch_size=PAIRS - 1).train_dataloader()
    assert [(len(batch.keys), batch.position) for batch in loader] == [(PAIRS - 1, PAIRS - 1), (1, PAIRS)]


def test_evaluation_uses_the_size_of_training_batches_if_none_is_given(data):
    assert data(batch_size=3).val_dataloader().dataset.batch_size == 3
    assert data(batch_size=3, eval_batch_size=7).val_dataloader().dataset.batch_size == 7


@pytest.mark.parametrize(
    ("kind", "batch"), [("preference", PreferenceBatch), ("instruction", InstructionBatch)]
)
def test_batches_are_of_the_kind(kind, batch, data):
    assert isinstance(next(iter(data(kind).train_dataloader())), batch)


def test_memory_is_pinned_for_a_gpu_alone(data):
    assert data(accelerator=CUDAAccelerator()).train_dataloader().pin_memory
    assert not data(accelerator=CPUAccelerator()).train_dataloader().pin_memory


def test_filters_leave_out_training_records_alone(data):
    module = data(filters=[OnlyText()])
    assert {key for batch in module.train_dataloader() for key in batch.modality.tolist()} == {0}
    assert len(module.dataset("train")) == PAIRS - module.dropped["OnlyText"] < PAIRS
    assert len(module.dataset("val")) == HELDOUT


def test_a_datamodule_that_has_tested_filters_when_it_trains(digits, tiny_folder):
    module = preference_data(digits, tiny_folder, filters=[OnlyText()])
    module.setup("test")
    assert len(module.dataset("train")) == PAIRS
    module.setup("fit")
    assert len(module.dataset("train")) < PAIRS


def test_a_datamodule_that_trains_again_has_the_same_records(data):
    module = data(filters=[OnlyText()])
    before = len(module.dataset("train")), dict(module.dropped)
    module.setup("fit")
    assert (len(module.dataset("train")), module.dropped) == before


def test_lightning_tells_the_order_its_epoch_and_validates(digits, tiny_folder, tmp_path):
    module, source = Recorder(), preference_data(digits, tiny_folder)
    trainer(tmp_path, max_steps=-1, max_epochs=2).fit(module, source)
    loader = source.train_dataloader()
    assert module.epochs == {epoch: keys(loader, epoch) for epoch in (0, 1)}
    assert module.validated == 2 * HELDOUT


def test_training_without_validation_shards_does_not_validate(digits, tiny_folder, tmp_path):
    module = Recorder()
    trainer(tmp_path).fit(module, preference_data(digits, tiny_folder, val=None))
    assert (len(module.epochs[0]), module.validated) == (2 * 8, 0)


def test_validating_without_validation_shards_is_an_error(digits, tiny_folder, tmp_path):
    with pytest.raises(InputError, match=r"data.val names no shards: give a folder or tars"):
        trainer(tmp_path).validate(Recorder(), preference_data(digits, tiny_folder, val=None))


def test_a_checkpoint_that_an_error_of_the_start_causes_does_not_hide_the_error(digits, tiny_folder):
    assert preference_data(digits, tiny_folder).state_dict() == {}


def test_a_path_to_nothing_is_named(data, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.tar: no such shard; name a folder, a tar or a pattern"):
        data(train=str(tmp_path / "nothing.tar"))


def test_training_without_training_shards_is_an_error(data):
    with pytest.raises(InputError, match=r"data.train names no shards: give a folder or tars"):
        data(train=None)


@both_kinds
def test_shards_of_another_kind_are_refused(kind, data, digits):
    other = {"preference": "instruction", "instruction": "preference"}[kind]
    with pytest.raises(InputError, match=f"holds {other} records, but is read as {kind} data"):
        data(kind, train=str(digits / other / "train"))


@pytest.mark.parametrize("modality", ["text", "image", "multi_image", "video"])
def test_an_example_has_the_texts_and_the_pictures_of_its_record(modality, data):
    module = data()
    records = module.dataset("val")
    index = next(index for index in range(len(records)) if records.modality(index) == modality)
    record, example = records[index], module.example("val", records.name(index))
    assert example.prompt == "".join(part.get("text", "") for part in record.parts)
    assert [{"type": "text", "text": example.chosen}] == record.chosen[0]["content"]
    assert [{"type": "text", "text": example.rejected}] == record.rejected[0]["content"]
    frames = {"image": 1, "video": FRAMES}
    assert len(example.pictures) == sum(frames.get(part["type"], 0) for part in record.parts)


def test_a_domain_has_one_id_in_every_split(tmp_path, tiny_folder, digits):
    def folder(name, *domains):
        write_shards((_pair(domain) for domain in domains), tmp_path / name, kind=Kind.PREFERENCE)
        return str(tmp_path / name)

    paths = {"train": folder("train", "b", "d"), "val": folder("val", "c", "b"), "test": folder("test", "a")}
    module = preference_data(digits, tiny_folder, **paths)
    module.setup("validate")
    assert module.domains == ["a", "b", "c", "d"]
    assert next(iter(module.val_dataloader())).domain.tolist() == [2, 1]


def _pair(domain):
    question = [{"role": "user", "content": "Which?"}]
    record = {"id": domain, "source": "test", "domain": domain, "messages": question}
    return Sample(domain, record | {"chosen": "this", "rejected": "that"})


def test_the_response_suffix_and_the_limit_reach_the_encoder(data):
    module = data(response_suffix="<pad>", max_tokens=500)
    assert (module.encoder.response_suffix, module.encoder.max_tokens) == ("<pad>", 500)
    assert module.encoder.video_frames == FRAMES


def test_shards_are_read_without_loading_lightning_and_transformers():
    program = "import sys, ixc_lightning.datamodules.shards; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"lightning", "transformers"} & set(done.stdout.split())


def test_a_name_that_the_package_does_not_have_is_an_attribute_error():
    import ixc_lightning.datamodules as package

    with pytest.raises(AttributeError, match=r"'ixc_lightning\.datamodules' has no attribute 'Nothing'"):
        _ = package.Nothing
