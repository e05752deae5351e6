# SPDX-License-Identifier: Apache-2.0
"""A budget of tokens for the batch of one rank, and what each record takes of it.

A pair that the reward model reads as a tree, its prompt once and nothing padded, takes P + T₁ + T₂ tokens,
and a batch the sum over its pairs. Where every response is joined with its prompt and padded to the longest
sequence of the batch, a batch of B records takes n · B · max(P + T) tokens for n responses each.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int64
from lightning.pytorch.utilities import rank_zero_info

from ixc_lightning.datamodules.collate import Collator
from ixc_lightning.datamodules.lengths import UNUSABLE, Lengths, Rows, lengths_of, measure_lengths
from ixc_lightning.datamodules.order import Places
from ixc_lightning.datamodules.processing import Encoded
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.datamodules.shards import Selection, ShardDataset
from ixc_lightning.types import InputError

Layout: TypeAlias = Literal["trees", "padded"]
"""How the network gets prompts and responses: as trees without padding, or joined and padded."""
SURVEYED = 1 << 16
"""Records whose lengths are looked at together."""


class TokenBudget:
    """How many tokens a batch of one rank may hold, and how many each record takes.

    Args:
        tokens: of a batch.
        records: the records that batches are made of.
        lengths: of the records, or of those that they are a selection from.
        layout: how the network gets them.
        max_tokens: of a prompt and one response, if there is a limit; a longer record cannot be used.

    Attributes:
        mean: tokens of a record, on average over those that can be used.
        num_unusable: how many records no batch can hold.
        first_unusable: number of the first of them, or None.
    """

    def __init__(
        self,
        tokens: int,
        records: ShardDataset | Selection,
        lengths: Lengths,
        *,
        layout: Layout,
        max_tokens: int | None = None,
    ) -> None:
        self.tokens = tokens
        self.records = records
        self.lengths = lengths
        self.layout = layout
        self.max_tokens = max_tokens
        self.first_unusable: int | None = None
        self.num_unusable, total = 0, 0
        for start in range(0, len(records), SURVEYED):
            costs = self.costs(np.arange(start, min(start + SURVEYED, len(records))))
            zeros = np.flatnonzero(costs == 0)
            if self.first_unusable is None and len(zeros):
                self.first_unusable = start + int(zeros[0])
            self.num_unusable, total = self.num_unusable + len(zeros), total + int(costs.sum())
        self.mean = total / max(len(records) - self.num_unusable, 1)

    @property
    def fingerprint(self) -> str:
        """What tells these sizes from others of the same records."""
        return f"{self.lengths.fingerprint}-{self.layout}"

    def sizes(self, indices: Places) -> Places:
        """Tokens of each record, whatever the budget is; 0 for one that cannot be read."""
        rows = self.lengths.of(self._whole(indices))
        return np.where(rows[:, 0] == UNUSABLE, 0, tokens_of(rows, self.layout))

    def costs(self, indices: Places) -> Places:
        """Tokens of each record, at most ``tokens``; 0 for one that cannot be used."""
        sizes = self.sizes(indices)
        is_bad = sizes > self.tokens
        if self.max_tokens is not None:
            rows = self.lengths.of(self._whole(indices))
            is_bad |= rows[:, 0] + rows[:, 1:].max(axis=1) > self.max_tokens
        return np.where(is_bad, 0, sizes)

    def held(self, costs: Places) -> Places:
        """Tokens that the first sample, the first two, … hold together; never falling."""
        if self.layout == "trees":
            return np.cumsum(costs)
        return np.cumsum(costs > 0) * np.maximum.accumulate(costs)

    def check(self, index: int, encoded: Encoded) -> None:
        """Make sure that a record is as long as it was, and no longer than the budget.

        Args:
            index: number of the record.
            encoded: the record.

        Raises:
            InputError: naming the record, and what to do.
        """
        whole = self._whole(np.array([index]))
        rows, found = self.lengths.of(whole), lengths_of(encoded)
        name = ":".join(self.records.place(index))
        if rows[0].tolist() != found:
            raise InputError(
                f"{name}: prompt and responses have {found} tokens, but {rows[0].tolist()} by "
                f"{self.lengths.file(int(whole[0]))}: the data have changed since; delete that file, and "
                "they are counted anew"
            )
        cost = int(tokens_of(rows, self.layout)[0])
        if cost > self.tokens:
            raise InputError(
                f"{name}: {cost} tokens, more than data.token_budget={self.tokens}, so no batch can hold it; "
                "raise data.token_budget, leave the sample out, or quarantine what is too long with "
                "data.on_bad_sample"
            )

    def _whole(self, indices: Places) -> Places:
        """Numbers of the records in the data set whose lengths are known."""
        return self.records.kept[indices] if isinstance(self.records, Selection) else indices


def check_budgets(train: int | None, evaluation: int | None, *, kind: Kind, mix: str) -> None:
    """Make sure that budgets of tokens can be kept to.

    Args:
        train: most tokens of a batch for training, if there is a budget.
        evaluation: the same outside training.
        kind: of the records.
        mix: what the sources take turns with.

    Raises:
        InputError: one is not positive, or does not go together with the other settings.
    """
    for name, tokens in {"token_budget": train, "eval_token_budget": evaluation}.items():
        if tokens is None:
            continue
        if tokens < 1:
            raise InputError(f"data.{name} is {tokens}, but a batch holds at least one token")
        if kind is Kind.PROMPT:
            raise InputError(
                f"data.{name} is not for prompts, whose tokens are for the most part those that the policy "
                "answers: set data.batch_size"
            )
    if train is not None and mix == "units":
        raise InputError(
            "data.mix is units, which are of so many samples, and a batch by data.token_budget may hold two "
            "of them: set data.mix to samples, or data.token_budget to null"
        )


def open_budget(
    tokens: int,
    records: ShardDataset | Selection,
    collator: Collator[Any],
    *,
    layout: Layout,
    folder: str,
    num_workers: int,
    keeps_bad: bool,
) -> TokenBudget:
    """A budget for batches of these records, whose tokens are counted first if they were not before.

    Args:
        tokens: of a batch of one rank.
        records: what batches are made of.
        collator: encodes them.
        layout: how the network gets them.
        folder: where lengths are kept.
        num_workers: processes of this rank that count.
        keeps_bad: whether a record that no batch can hold is left for its turn; else it raises.

    Raises:
        InputError: naming the record, if one cannot be used; or none can be, or lengths cannot be kept.
    """
    whole = records.records if isinstance(records, Selection) else records
    lengths = measure_lengths(whole, collator, folder=folder, num_workers=num_workers)
    budget = TokenBudget(tokens, records, lengths, layout=layout, max_tokens=collator.encoder.max_tokens)
    first = budget.first_unusable
    if first is not None and (not keeps_bad or budget.num_unusable == len(records)):
        budget.check(first, collator.encode(records.record(first)))
    if first is not None:
        rank_zero_info(
            f"{budget.num_unusable:,} of {len(records):,} records are damaged, or longer than the budget of "
            f"{tokens:,} tokens; they are left out and listed when their turn comes"
        )
    return budget


def tokens_of(rows: Rows, layout: Layout) -> Int64[np.ndarray, " N"]:
    """Tokens that each record takes of a batch: P + ΣT as a tree, n · (P + max T) as n padded sequences."""
    lengths = rows.astype(np.int64)
    if layout == "trees":
        return lengths.sum(axis=1)
    return (lengths.shape[1] - 1) * (lengths[:, 0] + lengths[:, 1:].max(axis=1))
