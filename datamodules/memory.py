# SPDX-License-Identifier: Apache-2.0
"""How a loader's worker deals with freed memory."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 256 * 2**20
"""Freed memory at the end of the heap that a worker keeps for the next picture."""
HEAP_BYTES = 32 * 2**20
"""Blocks up to this size come from the heap, where they can be used again; glibc allows no more."""


def keep_freed_memory(worker: int) -> None:
    """Have this process use the memory of one picture again for the next one; a ``worker_init_fn``.

    glibc hands every freed block of some size back to the kernel, and the kernel fills each fresh page with
    zeros when it is touched. A decoded picture and its tensors are megabytes, many times per record. Where
    another C library is in use, nothing happens.

    Args:
        worker: number of the worker, which does not matter.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, HEAP_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
