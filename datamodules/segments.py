# SPDX-License-Identifier: Apache-2.0
"""Shared memory that a worker fills again, once the process that read it has let go of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

HEADER = 64
"""Bytes before the contents, which are aligned so; the first tells whether somebody reads them."""
FREE, TAKEN = 0, 1
ROOM = 1.125
"""What a new segment holds, of what it was made for: the next batch may be a little larger."""


class SegmentPool:
    """Hands tensors of one process to another through segments of shared memory that are used over again.

    torch makes a new file of shared memory for every tensor. The kernel fills its pages with zeros when they
    are written, maps them once more when they are read, and takes them back at the end; for the pixels of a
    batch that takes longer than to copy them. Here the reader's last view of a tensor marks its segment as
    free when it goes, and the writer, which alone hands segments out, takes it for the next tensor.

    A segment that is not given back is left to its reader, as torch would. There are no more of them than
    tensors on their way or held, and a free one that is too small makes room for one that is not.
    """

    def __init__(self) -> None:
        self._segments: list[Tensor] = []
        self._lock = threading.Lock()  # queues pickle in threads of their own

    def reduce(self, tensor: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What pickling wants of a plain tensor of the CPU, not empty; its contents go into a segment."""
        with self._lock:
            segment = self._take(tensor.nbytes)
        view_of(segment, tensor.dtype, tensor.shape).copy_(tensor)
        return _rebuild, (*reduce_tensor(segment), tensor.dtype, tensor.shape)

    def __len__(self) -> int:
        """Number of segments, free or not."""
        return len(self._segments)

    def _take(self, size: int) -> Tensor:
        """A segment with room for ``size`` bytes, marked as taken: the smallest free one, or a new one."""
        free = sorted((one for one in self._segments if one[0] == FREE), key=len)
        fitting = [one for one in free if len(one) >= HEADER + size]
        if fitting:
            segment = fitting[0]
        else:
            self._segments = [one for one in self._segments if not any(one is other for other in free[-1:])]
            segment = torch.empty(HEADER + int(size * ROOM), dtype=torch.uint8).share_memory_()
            self._segments.append(segment)
        segment[0] = TAKEN
        return segment


def view_of(segment: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The contents of a segment as a tensor of this kind."""
    size = shape.numel() * dtype.itemsize
    return segment[HEADER : HEADER + size].view(dtype).view(shape)


def _rebuild(
    open_segment: Callable[..., Tensor], arguments: tuple[Any, ...], dtype: torch.dtype, shape: torch.Size
) -> Tensor:
    """The reader's tensor; its segment is free again when the last view of it goes."""
    segment = open_segment(*arguments)
    lease = segment[HEADER : HEADER + shape.numel() * dtype.itemsize].numpy()
    # torch keeps the array as long as any view of the tensor lives. The mark is the reader's alone: a process
    # that it forks has the array as well.
    finalize(lease, _release, segment, os.getpid()).atexit = False
    return torch.from_numpy(lease).view(dtype).view(shape)


def _release(segment: Tensor, reader: int) -> None:
    if os.getpid() == reader:
        np.copyto(segment[:1].numpy(), FREE)
