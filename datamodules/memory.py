# SPDX-License-Identifier: Apache-2.0
"""What a loader's worker does about memory and signals.

Freed pages are used again, small tensors go without pages, and who stops the run is the process that trains.
"""

from __future__ import annotations

import ctypes
import platform
import signal
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from ixc_lightning.datamodules.segments import SegmentPool

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 256 * 2**20
"""Freed memory at the end of the heap that a worker keeps for the next picture."""
HEAP_BYTES = 32 * 2**20
"""Blocks up to this size come from the heap, where they can be used again; glibc allows no more."""
SMALL_BYTES = 2**16
"""Tensors up to this size are sent through the queue's pipe rather than put into shared memory."""


def prepare_worker(worker: int) -> None:
    """Have this process spend little memory and live as long as its parent; ``worker_init_fn`` of loaders.

    A scheduler sends the signal that stops a run to all of its processes. The parent finishes its step and
    saves; a worker that died before would end the run with an error instead.

    Args:
        worker: number of the worker, which does not matter.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    ForkingPickler.register(Tensor, _reduce)


def keep_freed_memory() -> None:
    """Have this process use the memory of one picture again for the next one.

    glibc hands every large block back to the kernel when it is freed, and the kernel fills each fresh page
    with zeros when it is touched. A decoded picture and its tensors are megabytes, several times per record.
    Where another C library is in use, nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, HEAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _reduce(tensor: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Small tensors by value: shared memory costs each of them a file, a mapping and a message.

    For the dozen of a batch that was measured at 7 ms, and at 1 ms by value.
    """
    is_plain = type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.layout == torch.strided
    if not is_plain or tensor.requires_grad or not tensor.numel():
        return reduce_tensor(tensor)
    if tensor.nbytes <= SMALL_BYTES and tensor.dtype in _BY_VALUE:
        return torch.from_numpy, (tensor.numpy(),)
    return _pool.reduce(tensor)


_pool = SegmentPool()
_BY_VALUE = {torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64}
