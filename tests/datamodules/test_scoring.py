# SPDX-License-Identifier: Apache-2.0
"""The ranks share what is to be scored, and a record that cannot be scored holds nobody up."""

import json

import numpy as np
import pytest

from ixc_lightning.datamodules import ScoringDataModule
from ixc_lightning.datamodules.candidate_files import JsonLines
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.datamodules.scoring import CandidateBatches
from ixc_lightning.types import InputError

BAD = {4, 5}


@pytest.fixture
def source(tmp_path):
    """Eleven prompts with one or two responses, two of which cannot be scored."""
    rows = [{"messages": f"what is {n}?", "responses": ["a b", "c"][: 1 + n % 2]} for n in range(11)]
    for n in BAD:
        rows[n]["images"] = ["no.png"]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonLines([str(path)])


def _batches(source, folder, rank, *, todo=None, keeps_going=True):
    todo = np.arange(len(source)) if todo is None else np.array(todo)
    return CandidateBatches(
        source,
        todo,
        ChatEncoder(str(folder)),
        batch_size=2,
        rank=rank,
        world_size=2,
        keeps_going=keeps_going,
    )


def _seen(batch):
    return [row for row, real in zip(batch.rows, batch.real.tolist(), strict=True) if real]


def test_the_ranks_take_each_record_once_and_make_equally_many_steps(source, tiny_folder):
    ranks = [_batches(source, tiny_folder, rank) for rank in range(2)]
    assert {len(batches) for batches in ranks} == {3}
    every = [batches[step] for batches in ranks for step in range(3)]
    assert sorted(row for batch in every for row in _seen(batch)) == sorted(set(range(11)) - BAD)
    assert {bad[0] for batch in every for bad in batch.bad} == BAD


def test_a_slice_without_a_good_record_gets_one_that_does_not_count(source, tiny_folder):
    batch = _batches(source, tiny_folder, 0)[1]  # records 4 and 5
    assert batch.real.tolist() == [False]
    assert [(row, key) for row, key, *_ in batch.bad] == [(4, "line 5"), (5, "line 6")]
    assert "no.png cannot be read" in batch.bad[0][3]


def test_responses_know_their_prompts(source, tiny_folder):
    batch = _batches(source, tiny_folder, 0)[0]
    assert batch.rows == [0, 1]
    assert batch.prompt_index.tolist() == [0, 1, 1]
    assert batch.names == ["0", "0", "1"]
    assert len(batch.responses.ids) == 3


def test_what_is_left_out_is_not_read(source, tiny_folder):
    batches = _batches(source, tiny_folder, 0, todo=[0, 1, 2, 9])
    assert len(batches) == 1
    assert _seen(batches[0]) == [0, 1]
    data = ScoringDataModule(str(tiny_folder), predict=str(source.paths[0]))
    data.setup("predict")
    data.leave_out(np.array([3, 0, 0]))
    assert data.todo.tolist() == [1, 2, *range(4, 11)]
    assert len(data) == 11


def test_a_bad_record_ends_the_run_unless_it_may_not(source, tiny_folder):
    with pytest.raises(InputError, match=r"line 5, images\[0\]: no.png"):
        _batches(source, tiny_folder, 0, keeps_going=False)[1]


def test_nothing_but_bad_records_is_an_error(source, tiny_folder):
    source.starts, source.ends = source.starts[4:6], np.array([2])
    with pytest.raises(InputError, match="the first 2 records are all bad"):
        _batches(source, tiny_folder, 0)[0]


def test_a_batch_holds_at_least_one_prompt(tiny_folder):
    with pytest.raises(InputError, match=r"data\.batch_size is 0"):
        ScoringDataModule(str(tiny_folder), batch_size=0)
