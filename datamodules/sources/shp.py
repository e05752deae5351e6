# SPDX-License-Identifier: Apache-2.0
"""Stanford Human Preferences: comments on Reddit posts, of which one was voted higher though it came later.

Schema of the card of 2023-02: ``history`` is the post, ``labels`` is 1 where ``human_ref_A`` is preferred,
``score_ratio`` says how clearly, ``domain`` is the subreddit with the split (``askacademia_train``).

Kept are pairs with a score ratio of at least 2, and at most 5 of a post, the first ones: the authors advise
both, since weak votes are noise, and a few posts have hundreds of pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

from ixc_lightning.datamodules.sources._converting import DataSet, OnBadRow, Report, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, text_pair, user
from ixc_lightning.datamodules.sources._reading import Row

DATA = DataSet(
    name="shp",
    home="stanfordnlp/SHP",
    licence="MIT by its tag; the posts are under the terms of Reddit",
    required=("post_id", "domain", "history", "human_ref_A", "human_ref_B", "labels", "score_ratio"),
    optional=(
        *("score_A", "score_B", "upvote_ratio", "seconds_difference"),
        *("c_root_id_A", "c_root_id_B", "created_at_utc_A", "created_at_utc_B"),
    ),
)


def convert(
    source: str,
    out: str,
    *,
    min_score_ratio: float = 2.0,
    max_pairs_per_post: int = 5,
    limit: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> Report:
    """Write preference shards from Stanford Human Preferences.

    Args:
        source: a Parquet, JSON Lines or JSON file, a folder, a pattern or a hub id. Name one split:
            ``SHP/*/train.json``.
        out: folder to write; it must not exist, or be empty.
        min_score_ratio: how many times the votes of the other the chosen comment must at least have.
        max_pairs_per_post: pairs of one post; further ones are left out.
        limit: rows to read at most.
        on_bad_row: raise stops at a row that cannot be used; drop leaves it out and counts it.

    Returns:
        What was read, written and left out, and why.

    Raises:
        InputError: naming file, row and field.
    """
    return convert_rows(
        DATA,
        partial(_drafts, min_score_ratio, max_pairs_per_post, Counter()),
        source,
        out,
        settings={"min_score_ratio": min_score_ratio, "max_pairs_per_post": max_pairs_per_post},
        limit=limit,
        on_bad_row=on_bad_row,
    )


def _drafts(min_ratio: float, max_pairs: int, posts: Counter[str], row: Row) -> Iterator[Draft]:
    preferred = row.integer("labels", (0, 1))
    if row.number_of("score_ratio") < min_ratio:
        raise Dropped("the votes are too close")
    post = row.text("post_id")
    posts[post] += 1
    if posts[post] > max_pairs:
        raise Dropped("the post has enough pairs")
    names = ("human_ref_A", "human_ref_B") if preferred else ("human_ref_B", "human_ref_A")
    texts = [row.text(name) for name in names]
    subreddit = row.text("domain").rpartition("_")[0] or row.text("domain")
    yield text_pair(f"{post}-{posts[post]}", subreddit, [user(row.text("history"))], *texts)
