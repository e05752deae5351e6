# SPDX-License-Identifier: Apache-2.0
"""Which of the training records the filters keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.datamodules.filters import Filter
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.remote import StoreInputError
from ixc_lightning.datamodules.shards import Selection, ShardDataset
from ixc_lightning.types import InputError


def filter_records(
    dataset: ShardDataset, filters: Sequence[Filter], encoder: ChatEncoder, *, keeps_bad: bool
) -> tuple[Selection, Counter[str]]:
    """Return the records that every filter keeps, and how many each left out, by the name of its class.

    Args:
        dataset: the training records.
        filters: in the order in which they run; each sees what those before it kept.
        encoder: of the model's processor.
        keeps_bad: whether a record that cannot be read stays, and is bad when its turn comes; else it raises.

    Raises:
        InputError: a record that cannot be read, or nothing is left.
    """
    kept = np.arange(len(dataset))
    dropped: Counter[str] = Counter()
    for rule in filters:
        before = len(kept)
        rule.prepare(encoder)
        kept = np.array(
            [index for index in kept if _keeps(rule, dataset, int(index), encoder, keeps_bad)], dtype=np.int64
        )
        name = type(rule).__name__
        dropped[name] += before - len(kept)
        details = f" ({rule.details})" if rule.details else ""
        rank_zero_info(f"{name} dropped {before - len(kept):,} of {before:,} training records{details}")
    if not len(kept):
        raise InputError(f"{', '.join(dropped)} dropped every training record: loosen data.filters")
    return Selection(dataset, kept), dropped


def _keeps(rule: Filter, dataset: ShardDataset, index: int, encoder: ChatEncoder, keeps_bad: bool) -> bool:
    try:
        return rule.keep(dataset.record(index, media=rule.needs_media), encoder)
    except StoreInputError:  # it says nothing about the record
        raise
    except InputError:
        if not keeps_bad:
            raise
        return True
