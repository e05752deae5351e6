# SPDX-License-Identifier: Apache-2.0
"""Counting what happens in an iteration: means over ranks, seconds of each phase, memory."""

from __future__ import annotations

import math
import resource
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

BYTES_PER_GB = 2**30
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of ``ru_maxrss``."""

Method = TypeVar("Method", bound=Callable[..., Any])


class Tally:
    """Sums and counts by name, turned into means over everything that was counted, on all ranks.

    Every rank must count the same names.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Count ``count`` more values of the given sum."""
        total = total.detach().double()
        count = torch.as_tensor(count, device=total.device).double()
        before = self.sums.get(name, (torch.zeros_like(total), torch.zeros_like(count)))
        self.sums[name] = before[0] + total, before[1] + count

    def add_all(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Count the values where the mask is True."""
        self.add(name, values[mask].double().sum(), mask.sum())

    def means(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each name, of all ranks; NaN for a name of which nothing was counted.

        Args:
            over_ranks: a tensor of this rank to the sum, or the mean, of all ranks.
        """
        sums = over_ranks(torch.stack([torch.stack(pair) for pair in self.sums.values()]))
        return dict(zip(self.sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))

    def known_means(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of the names of which something was counted on some rank."""
        return {name: mean for name, mean in self.means(over_ranks).items() if not math.isnan(mean)}


def timed(method: Method) -> Method:
    """Add the seconds that a method takes to ``self.seconds`` under the method's name."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the work of the phase, not the time to ask for it
            self.seconds[method.__name__] += perf_counter() - start

    return run  # type: ignore[return-value]


def no_seconds() -> defaultdict[str, float]:
    """A fresh count of seconds."""
    return defaultdict(float)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory so far: allocated on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / BYTES_PER_GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / BYTES_PER_GB
