# SPDX-License-Identifier: Apache-2.0
"""UltraFeedback: responses of many models with ratings by GPT-4, in three published forms.

``HuggingFaceH4/ultrafeedback_binarized`` (schema of 2024-01) and the cleaned variants of argilla and allenai:
``chosen`` and ``rejected`` are whole conversations with ``score_chosen`` and ``score_rejected``, or
``chosen-rating`` and ``rejected-rating``. Pairs whose chosen score is not higher are dropped; ties occur.

``openbmb/UltraFeedback`` (schema of 2023-10): ``completions`` with a rating for each aspect. The response
with the highest mean rating is chosen, a random lower one rejected. ``overall_score`` is not used: it is
wrong in some rows, where a 1 was read as 10.

Prefer a cleaned variant: the others contain questions of TruthfulQA.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._dialogue import read_pair
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, text_pair, user
from ixc_lightning.datamodules.sources._pairs import best_and_lower, read_completion, to_number
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="ultrafeedback",
    home="HuggingFaceH4/ultrafeedback_binarized",
    licence="MIT; the responses are under the terms of the models that wrote them",
    required=(),
    optional=(
        *("prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"),
        *("chosen-rating", "rejected-rating", "chosen-model", "rejected-model", "source"),
        *("instruction", "models", "completions", "correct_answers", "incorrect_answers"),
    ),
)
SCORES = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))


def convert(
    source: str,
    out: str,
    *,
    min_gap: float = 0.0,
    seed: int = 0,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from UltraFeedback, binarized, cleaned or as it was first published.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id. Name one split:
            ``hf://datasets/HuggingFaceH4/ultrafeedback_binarized/data/train_prefs-*.parquet``.
        out: folder to write; it must not exist, or be empty.
        min_gap: how far apart the ratings must at least be; equal ones are never a pair.
        seed: fixes which lower response is rejected, where there are several.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    settings = {"min_gap": min_gap, "seed": seed}
    drafts = partial(_drafts, min_gap, seed)
    return convert_rows(DATA, drafts, source, out, settings=settings, limit=limit, on_bad_row=on_bad_row)


def _drafts(min_gap: float, seed: int, row: Row) -> Iterator[Draft]:
    yield _rated(min_gap, seed, row) if row.get("completions") is not None else _binarized(min_gap, row)


def _binarized(min_gap: float, row: Row) -> Draft:
    for names in SCORES:
        if names[0] in row.fields:
            chosen, rejected = (to_number(row.get(name)) for name in names)
            if chosen is None or rejected is None:
                raise Dropped("a rating is missing")
            if chosen <= rejected:
                raise Dropped("the chosen response is not rated higher")
            if chosen - rejected < min_gap:
                raise Dropped("the ratings are too close")
    return Draft(row.id("prompt_id"), "general", *read_pair(row))


def _rated(min_gap: float, seed: int, row: Row) -> Draft:
    prompt = row.text("instruction")
    completions = [read_completion(completion, row) for completion in row.items("completions")]
    ratings = [rating for _, rating in completions]
    better, worse = best_and_lower(ratings, min_gap=min_gap, seed=f"{seed}/{prompt}")
    return text_pair(row.id(), "general", [user(prompt)], completions[better][0], completions[worse][0])
