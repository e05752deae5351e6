# SPDX-License-Identifier: Apache-2.0
"""The random numbers of a run, kept in its checkpoints: Lightning saves none.

Dropout and sampling go on exactly only if every generator of every rank does. A run that resumes on another
number of ranks cannot; it derives fresh seeds from the saved ones, the same in every such run.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import distributed

KEY = "random_state"


def save_random_state(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Put the state of Python's, NumPy's and torch's generators of all ranks into a checkpoint.

    To be called by every rank, in ``on_save_checkpoint``.
    """
    states: list[Any] = [_current()]
    if trainer.world_size > 1:
        states = [None] * trainer.world_size
        distributed.all_gather_object(states, _current())
    checkpoint[KEY] = states


def restore_random_state(trainer: L.Trainer | None, checkpoint: Mapping[str, Any]) -> None:
    """Set this rank's generators to what a checkpoint holds; nothing happens if it holds none.

    To be called by every rank, in ``on_load_checkpoint``. Only a run that trains goes on with the numbers of
    another; what merely evaluates, or has no trainer, keeps its own.
    """
    states = checkpoint.get(KEY)
    if not states or trainer is None or not trainer.training:
        return
    if len(states) == trainer.world_size:
        _set(states[trainer.global_rank])
        return
    seed = zlib.crc32(states[0]["torch"].numpy().tobytes()) ^ trainer.global_rank
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _current() -> dict[str, Any]:
    """Plain data and tensors only, so that the file loads without unpickling code."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
