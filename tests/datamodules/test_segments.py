# SPDX-License-Identifier: Apache-2.0
"""Segments: contents arrive whole, what is let go is filled again, and what is held never is."""

import gc
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ixc_lightning.datamodules.memory import SMALL_BYTES, _pool, prepare_worker
from ixc_lightning.datamodules.segments import HEADER, SegmentPool

LARGE = SMALL_BYTES + 1
PREFETCHED = 2
"""Batches that a worker makes ahead, as torch has it."""


def sent(pool, tensor):
    """What a reader in this process gets, by the bytes that would travel."""
    rebuild, arguments = pool.reduce(tensor)
    return rebuild(*pickle.loads(ForkingPickler.dumps(arguments)))


class Batches(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        size = LARGE + 997 * (index * 7 % 11)
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        return {"index": index, "pixels": pixels, "segments": len(_pool)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (1,), ()])
def test_a_tensor_arrives_as_it_was(dtype, shape):
    tensor = (torch.rand(shape) * 200).to(dtype)
    received = sent(SegmentPool(), tensor)
    assert torch.equal(received, tensor)
    assert received.dtype == dtype
    assert received.data_ptr() % HEADER == 0


def test_strides_do_not_matter():
    tensor = torch.arange(12).view(3, 4).t()[1:]
    assert torch.equal(sent(SegmentPool(), tensor), tensor)


def test_what_was_let_go_is_filled_again_and_what_is_held_is_not():
    pool = SegmentPool()
    first = sent(pool, torch.zeros(100))
    second = sent(pool, torch.ones(100))
    assert len(pool) == 2
    view = first[50:]
    del first
    third = sent(pool, torch.full((100,), 2.0))
    assert len(pool) == 3, "a view still reads it"
    del view
    fourth = sent(pool, torch.full((100,), 3.0))
    assert len(pool) == 3
    assert [tensor.unique().tolist() for tensor in (second, third, fourth)] == [[1.0], [2.0], [3.0]]


def test_a_segment_that_is_too_small_makes_room_for_a_larger_one():
    pool = SegmentPool()
    for size in (100, 1_000, 10_000):
        assert sent(pool, torch.arange(size)).sum() == size * (size - 1) // 2
    assert len(pool) == 1


def test_a_forked_process_does_not_give_back_what_its_parent_reads():
    pool = SegmentPool()
    held = sent(pool, torch.arange(1_000))
    child = os.fork()
    if child == 0:
        del held
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    sent(pool, torch.zeros(1_000))
    assert torch.equal(held, torch.arange(1_000))
    assert len(pool) == 2


@pytest.mark.parametrize("held", [0, 1, 5])
def test_batches_of_a_loader_stay_what_they_are_as_long_as_they_are_held(held):
    loader = DataLoader(
        Batches(), batch_size=None, num_workers=2, worker_init_fn=prepare_worker, persistent_workers=True
    )
    kept = []
    for _ in range(2):
        for batch in loader:
            kept = [*kept, batch][-held - 1 :]
            for one in kept:
                assert torch.equal(one["pixels"], Batches()[one["index"]]["pixels"])
    assert batch["segments"] <= PREFETCHED + held + 2, "the worker made a new one for most of its batches"
