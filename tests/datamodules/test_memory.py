# SPDX-License-Identifier: Apache-2.0
"""Workers: what they hand over arrives as it was, and freed memory stays with them."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ixc_lightning.datamodules.memory import SMALL_BYTES, prepare_worker

TENSORS = {
    "bool": torch.tensor([True, False]),
    "int64": torch.arange(6).view(2, 3),
    "strided": torch.arange(6).view(2, 3).t(),
    "empty": torch.zeros(0, 3),
    "empty half": torch.zeros(0, 3, dtype=torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "bytes": torch.arange(256).to(torch.uint8),
    "large": torch.arange(SMALL_BYTES // 8 + 1),
}
FAULTS = """
import resource, sys, torch
from ixc_lightning.datamodules.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keeping":
    keep_freed_memory()
def work():
    blocks = [torch.ones(2**20) for _ in range(8)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 8 * 2**20 * 4 // 4096


class Tensors(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return TENSORS


def test_tensors_arrive_as_they_were():
    loader = DataLoader(Tensors(), batch_size=None, num_workers=1, worker_init_fn=prepare_worker)
    first, second = loader
    for name, tensor in TENSORS.items():
        assert torch.equal(first[name], tensor), name
        assert first[name].dtype == tensor.dtype
        second[name].zero_()  # what came is the receiver's to change


def faults(how):
    # What glibc begins with, but it would raise these by itself at times, depending on the order of blocks.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_freed_memory_is_used_again():
    assert faults("keeping") < PAGES / 100 < PAGES / 2 < faults("giving back")
