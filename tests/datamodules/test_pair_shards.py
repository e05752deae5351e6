# SPDX-License-Identifier: Apache-2.0
"""Pairs that a record cannot hold are counted, and all records of a shard have one shape."""

import json
from collections import Counter

import pytest

from ixc_lightning.datamodules.pair_shards import NO_RECORD, write_pairs
from ixc_lightning.datamodules.shard_writer import Sample

PROMPT = Sample(
    "p0", {"id": "i", "source": "s", "domain": "d", "messages": [{"role": "user", "content": "why?"}]}, {}
)


def _write(folder, *texts):
    candidates = [{"response": text, "from": "sample", "tokens": 1, "ended": True} for text in texts]
    made = {
        "row": 0,
        "key": "s.tar:p0",
        "seed": 1,
        "candidates": candidates,
        "pairs": [{"chosen": 0, "rejected": 1, "gap": 1.0}],
        "counts": Counter(),
        "left_out": Counter(),
    }
    return write_pairs(folder, [made], lambda row: PROMPT, summary=dict)


def test_contents_become_lists_of_parts(tmp_path):
    _write(tmp_path / "pairs", "yes", "no")
    data = (tmp_path / "pairs/preference/shard-000000.tar").read_bytes()
    record = json.loads(data[512 : data.index(b"\0", 512)])
    turns = [*record["messages"], *record["chosen"], *record["rejected"]]
    assert [turn["content"] for turn in turns] == [
        [{"type": "text", "text": text}] for text in ("why?", "yes", "no")
    ]
    assert "answer" not in record


@pytest.mark.parametrize("text", [" ", "see <image_soft_token>", "\ud800"])
def test_a_response_that_no_record_may_hold_costs_its_pair_alone(tmp_path, text):
    report = _write(tmp_path / "pairs", "yes", text)
    assert report["left_out"] == {NO_RECORD: 1}
    assert report["counts"] == {"prompts": 1, "prompts with a pair": 0, "pairs": 0}


def test_equal_responses_are_no_pair(tmp_path):
    assert _write(tmp_path / "pairs", "yes", "yes")["left_out"] == {NO_RECORD: 1}
