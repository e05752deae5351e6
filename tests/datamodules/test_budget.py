# SPDX-License-Identifier: Apache-2.0
"""The tokens of each record are counted once, budgets are kept to in real runs, and mistakes are named."""

import lightning as L
import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import ModelCheckpoint

from ixc_lightning.datamodules import InstructionDataModule, PreferenceDataModule, PromptDataModule
from ixc_lightning.datamodules import lengths as measuring
from ixc_lightning.datamodules.collate import Collator
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.types import InputError
from tests.digits import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

RECORDS = 24
BUDGET = 150


def _pair(number, words):
    question = [{"role": "user", "content": "1 " * words + "?"}]
    record = {"id": str(number), "source": "test", "domain": "text", "messages": question}
    return Sample(f"s{number:02d}", record | {"chosen": "2 " * (1 + number % 5), "rejected": "3 3"})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Pairs of very different lengths, in three shards."""
    folder = tmp_path_factory.mktemp("pairs")
    words = np.random.default_rng(0).integers(1, 40, RECORDS)
    write_shards(map(_pair, range(RECORDS), words), folder, kind=Kind.PREFERENCE, samples_per_shard=8)
    return folder


@pytest.fixture
def data(shards, tiny_folder, tmp_path):
    """A datamodule whose batches keep to a budget."""

    def build(**options):
        settings = {"train": str(shards), "token_budget": BUDGET, "lengths_folder": str(tmp_path / "lengths")}
        return PreferenceDataModule(str(tiny_folder), **{**settings, **options})

    return build


def tokens(batch):
    return sum(int(part.mask.sum()) for part in (batch.prompts, batch.chosen, batch.rejected))


def padded(batch):
    prompt = batch.prompts.mask.sum(dim=1)
    longest = max(int((prompt + part.mask.sum(dim=1)).max()) for part in (batch.chosen, batch.rejected))
    return 2 * len(prompt) * longest


def all_keys(batches):
    return [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize(("sharing", "held"), [("auto", tokens), ("off", padded)])
def test_batches_keep_to_the_budget_and_no_sample_is_lost(sharing, held, data):
    module = data(sharing=sharing, group_by_length=2)
    module.setup("fit")
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) > 3
    assert len(set(all_keys(batches))) == len(all_keys(batches)) == RECORDS
    assert max(map(held, batches)) <= BUDGET
    assert len({len(batch.keys) for batch in batches}) > 1
    assert [batch.position for batch in batches] == np.cumsum([len(b.keys) for b in batches]).tolist()


def test_evaluation_keeps_to_its_budget_in_the_order_of_the_shards(data, shards):
    module = data(val=str(shards), test=str(shards), eval_token_budget=2 * BUDGET)
    module.setup("validate")
    batches = list(module.val_dataloader())
    assert all_keys(batches) == [":".join(module.dataset("val").place(index)) for index in range(RECORDS)]
    assert BUDGET < max(map(tokens, batches)) <= 2 * BUDGET
    counted = data(val=str(shards), eval_batch_size=5)
    counted.setup("validate")
    assert [len(batch.keys) for batch in counted.val_dataloader()] == [5, 5, 5, 5, 4]


def test_tokens_are_counted_once_wherever_the_processor_lies(data, monkeypatch):
    data().setup("fit")
    monkeypatch.setattr(Collator, "__call__", None)
    monkeypatch.setattr(measuring._Measuring, "_measure", None)  # nothing is measured any more
    again = data()
    again.setup("fit")
    batch = next(iter(again.train_dataloader()))
    row = again._budgets["train"].lengths.of(np.array([int(batch.keys[0].split(":s")[1])]))[0]
    real = [part.mask[0].sum().item() for part in (batch.prompts, batch.chosen, batch.rejected)]
    assert row.tolist() == real


def test_counting_tokens_leaves_the_random_numbers_alone(data):
    torch.manual_seed(0)
    data().setup("fit")
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


def test_another_suffix_or_another_processor_is_counted_apart(data, tmp_path):
    for options in ({}, {"response_suffix": "<pad>"}, {"video_frames": 3}):
        data(**options).setup("fit")
    assert len(list((tmp_path / "lengths").iterdir())) == 3


def test_what_another_process_counts_is_waited_for(data, tmp_path, monkeypatch):
    module = data()
    module.setup("fit")
    (folder,) = (tmp_path / "lengths").iterdir()
    file = sorted(folder.glob("*.npy"))[0]
    kept = file.read_bytes()
    file.unlink()
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    lock.acquire()
    waits = []

    def wait(seconds):
        if seconds:
            waits.append(seconds)
            file.write_bytes(kept)

    monkeypatch.setattr(measuring.time, "sleep", wait)
    monkeypatch.setattr(measuring._Records, "_measure", None)  # nothing is left for this process
    data().setup("fit")
    lock.release()
    assert waits


def test_filters_and_lengths_agree_on_the_records(data):
    from ixc_lightning.datamodules.filters import Filter

    class Odd(Filter):
        def keep(self, record, encoder):
            return int(record.key[1:]) % 2 == 1

    module = data(filters=[Odd()])
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(all_keys(batches)) == RECORDS // 2
    assert max(map(tokens, batches)) <= BUDGET


def test_a_sample_that_is_longer_than_the_budget_is_named(data):
    with pytest.raises(InputError, match=r"\.tar:s\d\d: \d+ tokens, more than data.token_budget=40"):
        data(token_budget=40).setup("fit")


def test_a_sample_that_is_longer_than_the_budget_can_be_left_out(data):
    module = data(token_budget=40, on_bad_sample="quarantine")
    module.setup("fit")
    batches = list(module.train_dataloader())
    bad = [one for batch in batches for one in batch.bad]
    assert bad
    assert all("more than data.token_budget=40" in reason for _, _, reason in bad)
    good = [
        key for batch in batches for key, real in zip(batch.keys, batch.real.tolist(), strict=True) if real
    ]
    assert len(good) + len(bad) == RECORDS
    assert len(good) > 5
    assert max(map(tokens, batches)) <= 40


def test_a_sample_that_is_longer_than_max_tokens_is_named_at_the_start(data):
    with pytest.raises(InputError, match="more than max_tokens=20"):
        data(max_tokens=20).setup("fit")


def test_lengths_of_other_data_are_found_out(data, tmp_path):
    data().setup("fit")
    (folder,) = (tmp_path / "lengths").iterdir()
    file = sorted(folder.glob("*.npy"))[0]
    np.save(file, np.load(file)[::-1])
    module = data()
    module.setup("fit")
    with pytest.raises(
        InputError, match=rf"but \[.*\] by .*{file.name}: the data have changed since; delete"
    ):
        list(module.train_dataloader())


def test_a_damaged_file_of_lengths_is_named(data, tmp_path):
    data().setup("fit")
    (folder,) = (tmp_path / "lengths").iterdir()
    file = sorted(folder.glob("*.npy"))[0]
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=rf"{file.name}: does not hold the lengths of its shard"):
        data().setup("fit")


def test_a_folder_that_cannot_be_made_is_named(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/.*: lengths cannot be kept there .*data.lengths_folder"):
        data(lengths_folder=str(tmp_path / "file")).setup("fit")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PromptDataModule, {"token_budget": 9}, "is not for prompts"),
        (PreferenceDataModule, {"token_budget": 9, "mix": "units"}, "data.mix is units"),
        (PreferenceDataModule, {"token_budget": 0}, "token_budget is 0, but a batch"),
        (InstructionDataModule, {"eval_token_budget": -1}, "eval_token_budget is -1, but a batch"),
    ],
)
def test_what_does_not_go_together_is_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind("model", **options)


class Recorder(L.LightningModule):
    """Trains one number by the tokens of its batches, and remembers them and the length of each epoch."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.ones(()))
        self.seen, self.lengths = [], {}

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.keys))
        self.lengths[self.current_epoch] = self.trainer.num_training_batches
        return self.number.square() * tokens(batch) / BUDGET

    def validation_step(self, batch, batch_idx):
        """Lightning wants one where the data could be validated on."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data, folder, *, stop=-1, checkpoint=None, **options):
    """What a run of two epochs sees and learns up to ``stop`` steps, and where its last checkpoint is."""
    module, module_data = Recorder(), data(group_by_length=2, **options)
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(folder, max_steps=stop, max_epochs=2, enable_checkpointing=True, callbacks=[keeper])
    run.fit(module, module_data, ckpt_path=checkpoint, weights_only=True)
    return module, folder / f"step={run.global_step}.ckpt"


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(data, tmp_path):
    whole, _ = fit(data, tmp_path / "whole")
    steps = [sum(epoch == one for epoch, _ in whole.seen) for one in (0, 1)]
    assert whole.lengths == dict(enumerate(steps))  # the bar knows the steps of each epoch
    assert sorted(key for epoch, keys in whole.seen if epoch == 1 for key in keys) == sorted(
        key for epoch, keys in whole.seen if epoch == 0 for key in keys
    )
    for stop in (2, steps[0], steps[0] + 1):
        before, checkpoint = fit(data, tmp_path / f"before-{stop}", stop=stop)
        behind, _ = fit(data, tmp_path / f"behind-{stop}", checkpoint=checkpoint)
        assert before.seen + behind.seen == whole.seen
        assert torch.equal(behind.number, whole.number)


def test_a_run_goes_on_with_another_budget_if_the_unit_is_given(data, tmp_path):
    whole, _ = fit(data, tmp_path / "whole", unit=5)
    before, checkpoint = fit(data, tmp_path / "before", stop=2, unit=5)
    behind, _ = fit(data, tmp_path / "behind", checkpoint=checkpoint, unit=5, token_budget=2 * BUDGET)
    flat = [[key for _, keys in seen for key in keys] for seen in (before.seen + behind.seen, whole.seen)]
    assert flat[0] == flat[1]
    assert len(before.seen + behind.seen) < len(whole.seen)
    for other in ({"unit": 6}, {"unit": 5, "response_suffix": "<pad>"}):
        with pytest.raises(InputError, match="other training data, or another seed"):
            fit(data, tmp_path / "other", checkpoint=checkpoint, **other)


def test_a_run_goes_on_by_number_after_many_small_steps(data, tmp_path):
    """As on many more ranks: more steps are done of the epoch than it has now."""
    before, checkpoint = fit(data, tmp_path / "before", stop=9, token_budget=None, batch_size=1, unit=4)
    behind, _ = fit(data, tmp_path / "behind", checkpoint=checkpoint, token_budget=None, batch_size=8, unit=4)
    first = [key for epoch, keys in before.seen + behind.seen if epoch == 0 for key in keys]
    assert len(set(first)) == len(first) == RECORDS


@pytest.mark.slow
def test_workers_count_as_this_process_does(data, tmp_path):
    data().setup("fit")
    data(lengths_folder=str(tmp_path / "other"), num_workers=2).setup("fit")
    files = [sorted((tmp_path / name).rglob("*.npy")) for name in ("lengths", "other")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()
