# SPDX-License-Identifier: Apache-2.0
"""The converter of any instruction data: columns found by their names or named, records of both kinds."""

import pytest

from ixc_lightning.datamodules.sources import instructions
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import (
    answered,
    asked,
    picture,
    records,
    said,
    write_jsonl,
    write_parquet,
)

RED = picture("red")
JPG = ("image", "00.jpg")


def llava(*texts, **fields):
    return {
        "id": "7",
        "conversations": [{"from": ("human", "gpt")[n % 2], "value": t} for n, t in enumerate(texts)],
    } | fields


def convert(tmp_path, *rows, kind="instruction", write=write_jsonl, **options):
    source = write(tmp_path / f"rows.{'jsonl' if write is write_jsonl else 'parquet'}", *rows)
    report = instructions.convert(source, str(tmp_path / "out"), kind=kind, **options)
    return report, records(tmp_path / "out", kind)


@pytest.mark.parametrize(
    "row",
    [
        llava("<image>\nWhat is it?", "Red.", image="red.jpg"),
        {
            "messages": [
                {"role": "user", "content": "What is it?"},
                {"role": "assistant", "content": "Red."},
            ],
            "images": ["red.jpg"],
        },
        {"texts": [{"user": "What is it?", "assistant": "Red.", "source": "s"}], "images": ["red.jpg"]},
        {"question": "What is it?", "answer": "Red.", "image": "red.jpg"},
        {"query": "What is it?", "label": "Red.", "img_path": "red.jpg"},
        {"instruction": "<image>What is it?", "output": "Red.", "image_path": "./red.jpg"},
    ],
    ids=["llava", "chat", "cauldron", "vqa", "query", "alpaca"],
)
def test_usual_forms_are_read_without_being_told(tmp_path, row):
    (tmp_path / "red.jpg").write_bytes(RED)
    _, (record,) = convert(tmp_path, row)
    assert record.messages == (said("user", JPG, "What is it?"), said("assistant", "Red."))
    assert (record.media, record.source, record.domain) == ({"00.jpg": RED}, "rows", "general")


def test_a_prompt_record_keeps_the_last_answer_as_reference(tmp_path):
    rows = [llava("q", "a", "r", "b"), {"conversations": [{"from": "human", "value": "open?"}]}]
    _, found = convert(tmp_path, *rows, kind="prompt")
    assert [(record.messages, record.answer) for record in found] == [
        ((said("user", "q"), *answered("a"), said("user", "r")), "b"),
        (asked("open?"), None),
    ]


def test_an_instruction_record_ends_with_the_last_answer(tmp_path):
    report, found = convert(tmp_path, llava("q", "a", "r"), llava("q"))
    assert [record.messages for record in found] == [(said("user", "q"), *answered("a"))]
    assert report.dropped == {"there is no answer": 1}


def test_columns_can_be_named(tmp_path):
    row = {
        "uid": 5,
        "ask": "[pic] q",
        "say": 42,
        "task": "charts",
        "figure": {"bytes": RED, "path": "x"},
        "answer": "no",
    }
    _, (record,) = convert(
        tmp_path,
        row,
        write=write_parquet,
        question_field="ask",
        answer_field="say",
        media_field="figure",
        domain_field="task",
        id_field="uid",
        placeholder="[pic]",
        name="figures",
    )
    assert record.messages == (said("user", JPG, " q"), said("assistant", "42"))
    assert (record.domain, record.source) == ("charts", "figures")


def test_columns_that_are_not_used_are_reported(tmp_path):
    report, _ = convert(tmp_path, llava("q", "a", model="m", question="other"))
    assert sorted(report.unknown_fields) == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages_field": "chat"}, "has no column 'chat'; it has id, conversations"),
        ({"media_field": "photo"}, "has no column 'photo'"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        convert(tmp_path, llava("q", "a"), **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1, "b": 2}], r"none of its columns \(a, b\) has a usual name .*--messages_field"),
        ([], "its first file has no rows"),
        ([llava("q", "a"), {"conversations": None}], "row 2, conversations: is missing"),
        (
            [llava("q", "a"), llava("<image>q", "a")],
            "row 2, media: the row gives 0, but its text has places for 1",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        convert(tmp_path, *rows)
