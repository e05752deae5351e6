# SPDX-License-Identifier: Apache-2.0
"""A benchmark as batches: every item once, over any number of ranks, with its picture once."""

import pytest
import torch

from ixc_lightning.datamodules import BenchmarkDataModule
from ixc_lightning.datamodules.benchmarks import (
    MMRLHFRewardBenchReader,
    RewardBench2Reader,
    VLRewardBenchReader,
)
from ixc_lightning.datamodules.benchmarks.datamodule import ItemBatches
from ixc_lightning.types import InputError
from tests.datamodules.benchmarks import released


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return released.vl_rewardbench(tmp_path_factory.mktemp("vl"))


def data(tiny_folder, reader, path, **options):
    module = BenchmarkDataModule(str(tiny_folder), reader=reader, path=str(path), **options)
    module.setup("test")
    return module


def shares(module, world, batch_size=3):
    return [
        ItemBatches(
            module.source,
            module.encoder,
            batch_size=batch_size,
            rank=rank,
            world_size=world,
            keeps_going=module.on_bad_item == "leave_out",
        )
        for rank in range(world)
    ]


def test_a_batch_has_each_prompt_and_picture_once_and_all_responses(tiny_folder, folder):
    module = data(tiny_folder, VLRewardBenchReader(), folder, batch_size=2)
    batch = next(iter(module.test_dataloader()))
    assert batch.rows == [0, 1]
    assert batch.prompt_index.tolist() == [0, 0, 1, 1]
    assert batch.names == ["chosen[0]", "rejected[0]"] * 2
    assert batch.prompts.ids.shape[0] == 2
    assert batch.real.all()
    alone = next(iter(data(tiny_folder, VLRewardBenchReader(), folder).test_dataloader()))
    for name, tensor in alone.prompts.media.items():
        assert batch.prompts.media[name].shape[0] == 2 * tensor.shape[0]


def test_items_with_different_numbers_of_responses_share_a_batch(tiny_folder, tmp_path):
    module = data(tiny_folder, RewardBench2Reader(), released.rewardbench_2(tmp_path), batch_size=7)
    (batch,) = module.test_dataloader()
    assert batch.prompt_index.bincount().tolist() == [4, 4, 4, 4, 4, 3, 4]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_item_comes_once_on_any_number_of_ranks(tiny_folder, folder, world):
    module = data(tiny_folder, VLRewardBenchReader(), folder)
    rows = []
    for share in shares(module, world):
        batches = [share[index] for index in range(len(share))]
        assert batches
        rows += [row for batch in batches for row, real in zip(batch.rows, batch.real, strict=True) if real]
    assert sorted(rows) == list(range(8))


def test_the_loader_s_workers_change_nothing(tiny_folder, folder):
    alone, helped = (
        list(
            data(
                tiny_folder, VLRewardBenchReader(), folder, batch_size=3, num_workers=workers
            ).test_dataloader()
        )
        for workers in (0, 2)
    )
    assert [batch.rows for batch in alone] == [batch.rows for batch in helped]
    for own, other in zip(alone, helped, strict=True):
        assert torch.equal(own.responses.ids, other.responses.ids)
        assert all(torch.equal(value, other.prompts.media[name]) for name, value in own.prompts.media.items())


@pytest.fixture
def damaged(tmp_path):
    folder = released.mm_rlhf_rewardbench(tmp_path)
    (folder / "long/1.jpg").write_bytes((folder / "long/1.jpg").read_bytes()[:200])
    return folder


def test_a_bad_item_ends_the_run_or_is_left_out_and_named(tiny_folder, damaged):
    stops = data(tiny_folder, MMRLHFRewardBenchReader(), damaged, batch_size=5)
    with pytest.raises(InputError, match=r"mm_reward_bench\.jsonl:3"):
        list(stops.test_dataloader())
    goes_on = data(tiny_folder, MMRLHFRewardBenchReader(), damaged, batch_size=5, on_bad_item="leave_out")
    (batch,) = goes_on.test_dataloader()
    assert batch.rows == [0, 1, 3, 4]
    ((row, key, file, reason),) = batch.bad
    assert (row, key) == (2, "3")
    assert file.endswith("mm_reward_bench.jsonl")
    assert "00.jpg" in reason


def test_a_batch_of_bad_items_alone_gets_a_row_that_counts_nowhere(tiny_folder, damaged):
    module = data(tiny_folder, MMRLHFRewardBenchReader(), damaged, on_bad_item="leave_out")
    batch = shares(module, 1, batch_size=1)[0][2]
    assert batch.real.tolist() == [False]
    assert [row for row, *_ in batch.bad] == [2]


def test_a_benchmark_without_one_good_item_is_an_error(tiny_folder, tmp_path):
    folder = released.rewardbench_2(tmp_path)
    module = data(tiny_folder, RewardBench2Reader(), folder, on_bad_item="leave_out", max_tokens=2)
    with pytest.raises(InputError, match="none of the 7 items can be used"):
        list(module.test_dataloader())


def test_too_long_an_item_is_an_error_and_never_cut(tiny_folder, folder):
    module = data(tiny_folder, VLRewardBenchReader(), folder, max_tokens=4)
    with pytest.raises(InputError, match="more than max_tokens=4"):
        list(module.test_dataloader())


def test_settings_that_cannot_be_are_refused(tiny_folder, folder):
    with pytest.raises(InputError, match=r"data\.path is not given"):
        BenchmarkDataModule(str(tiny_folder), reader=VLRewardBenchReader()).setup("test")
    with pytest.raises(InputError, match="batch_size is 0"):
        data(tiny_folder, VLRewardBenchReader(), folder, batch_size=0)
