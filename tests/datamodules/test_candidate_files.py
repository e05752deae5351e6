# SPDX-License-Identifier: Apache-2.0
"""Lines of JSON and shards give the same candidates, and a bad line is named."""

import json

import numpy as np
import pytest

from ixc_lightning.datamodules.candidate_files import (
    CandidateSource,
    JsonLines,
    ShardCandidates,
    open_candidates,
)
from ixc_lightning.datamodules.given_media import picture_bytes
from ixc_lightning.datamodules.records import Kind
from ixc_lightning.types import InputError


def _lines(tmp_path, *rows, name="in.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def _texts(candidates):
    return [answer[0]["content"][0]["text"] for answer in candidates.answers]


def test_lines_are_read_by_number_with_their_responses(tmp_path):
    first = _lines(
        tmp_path, {"messages": "a?", "responses": ["1", "2"]}, "", {"messages": "b?", "response": "3"}
    )
    second = _lines(
        tmp_path, {"id": "own", "messages": "c?", "response": "", "domain": "d"}, name="two.jsonl"
    )
    source = JsonLines([first, second])
    assert isinstance(source, CandidateSource)
    assert [_texts(source.candidates(n)) for n in range(len(source))] == [["1", "2"], ["3"], [""]]
    assert source.place(1) == (first, "line 2")
    assert source.place(2) == (second, "line 1")
    assert source.candidates(2).record.key == "own"
    assert source.candidates(2).record.domain == "d"


def test_pictures_are_found_beside_the_file(tmp_path):
    (tmp_path / "media").mkdir()
    data = picture_bytes(np.zeros((4, 4, 3), np.uint8), where="x")
    (tmp_path / "media/a.png").write_bytes(data)
    part = {"type": "image", "path": "media/a.png"}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    path = _lines(
        tmp_path,
        {"messages": "?", "response": "x", "images": ["media/a.png"]},
        {"messages": turns, "response": "x"},
    )
    for row in range(2):
        record = JsonLines([path]).candidates(row).record
        assert list(record.media.values()) == [data]
        assert record.modality == "image"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "'line 2', json: not valid JSON"),
        ({"messages": "?", "respones": ["a"]}, "respones: unknown field, did you mean 'response"),
        ({"messages": "?"}, "responses: give either responses, a list, or response"),
        ({"messages": "?", "response": "a", "responses": []}, "responses: give either"),
        ({"messages": "?", "responses": "a"}, "responses: must be a list"),
        ({"messages": "?", "response": 3}, r"responses\[0\]: must be a text, not a number"),
        ({"response": "a"}, "messages: is missing"),
        ({"messages": "?", "response": "a", "images": ["no.png"]}, r"images\[0\]: no.png cannot be read"),
        ({"messages": "?", "response": "a", "images": ["http://h/a.png"]}, "give allow_urls"),
        ({"messages": "?", "response": "a", "id": 3}, "id: must be a string"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(row, message, tmp_path):
    path = _lines(tmp_path, {"messages": "?", "response": "a"}, row)
    with pytest.raises(InputError, match=f"in.jsonl.*line 2.*{message}|in.jsonl.*{message}"):
        JsonLines([path]).candidates(1)


def test_both_responses_of_a_pair_or_the_last_turn_of_an_instruction_are_candidates(digits):
    pairs = ShardCandidates(str(digits / "preference/heldout"), kind=Kind.PREFERENCE)
    assert pairs.candidates(0).names == ["chosen", "rejected"]
    single = ShardCandidates(str(digits / "instruction/heldout"), kind=Kind.INSTRUCTION)
    assert single.candidates(0).names == ["response"]
    assert single.place(0)[1] == single.candidates(0).record.key
    assert pairs.fingerprint != single.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.jsonl", "b.tar"], "mixes .jsonl files with shards"),
        ("none.jsonl", "none.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        open_candidates(given)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no lines"):
        open_candidates(_lines(tmp_path, ""))


def test_other_lines_have_another_fingerprint(tmp_path):
    row = {"messages": "?", "response": "a"}
    one, two = _lines(tmp_path, row), _lines(tmp_path, row, row, name="in2.jsonl")
    assert JsonLines([one]).fingerprint == JsonLines([one]).fingerprint != JsonLines([two]).fingerprint
