# SPDX-License-Identifier: Apache-2.0
"""TRL's preference format in its four forms, with pictures, and back to TRL."""

import pytest

from ixc_lightning.datamodules.sources import trl
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import (
    answered,
    asked,
    picture,
    records,
    said,
    shown,
    write_jsonl,
    write_parquet,
)

RED, BLUE = picture("red"), picture("blue", "PNG")


def talk(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def reply(text):
    return [{"role": "assistant", "content": text}]


def convert(tmp_path, *rows, **options):
    report = trl.convert(write_jsonl(tmp_path / "pairs.jsonl", *rows), str(tmp_path / "out"), **options)
    return report, records(tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            (asked("The sky is"), answered(" blue."), answered(" green.")),
        ),
        (
            {"prompt": talk("q"), "chosen": reply("a"), "rejected": reply("b")},
            (asked("q"), answered("a"), answered("b")),
        ),
        (
            {"prompt": talk("q", "a", "r"), "chosen": "c", "rejected": "d"},
            ((said("user", "q"), said("assistant", "a"), said("user", "r")), answered("c"), answered("d")),
        ),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            (asked("The sky is"), answered(" blue."), answered(" black.")),
        ),
        (
            {"chosen": talk("q", "a", "r", "c"), "rejected": talk("q", "a", "r", "d")},
            ((said("user", "q"), said("assistant", "a"), said("user", "r")), answered("c"), answered("d")),
        ),
        (
            {"prompt": "q", "chosen": talk("q", "a"), "rejected": talk("q", "b")},
            (asked("q"), answered("a"), answered("b")),
        ),
    ],
    ids=["standard", "conversational", "mixed", "implicit", "implicit conversational", "prompt twice"],
)
def test_every_form_gives_prompt_and_pair(tmp_path, row, expected):
    _, (record,) = convert(tmp_path, row)
    assert shown(record) == (*expected, "general")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            [{"type": "image"}, {"type": "text", "text": "q"}, {"type": "image"}],
            (("image", "00.jpg"), "q", ("image", "01.png")),
        ),
        ("q", (("image", "00.jpg"), ("image", "01.png"), "q")),
    ],
)
def test_pictures_come_from_their_column(tmp_path, content, parts):
    row = {
        "images": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}],
        "prompt": [{"role": "user", "content": content}],
        "chosen": reply("a"),
        "rejected": reply("b"),
    }
    source = write_parquet(tmp_path / "pairs.parquet", row)
    trl.convert(source, str(tmp_path / "out"), name="mine", domain="charts")
    (record,) = records(tmp_path / "out")
    assert shown(record) == (asked(*parts), answered("a"), answered("b"), "charts")
    assert (list(record.media.values()), record.source) == ([RED, BLUE], "mine")


def test_pairs_without_a_prompt_are_dropped_and_other_columns_reported(tmp_path):
    good = {"prompt": "q", "chosen": "a", "rejected": "b", "tools": []}
    report, _ = convert(
        tmp_path,
        good,
        {"chosen": "blue", "rejected": "black"},
        {"chosen": talk("q", "a"), "rejected": talk("p", "b")},
    )
    assert report.dropped == {"the responses share no prompt": 1, "the conversations share no prompt": 1}
    assert list(report.unknown_fields) == ["tools"]
    assert report.name == "pairs"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, "rejected: is missing"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt: must be a list of at least one message"),
        ({"prompt": "q", "chosen": "a", "rejected": reply("b")}, "rejected: must be a string, not list"),
        ({"prompt": "q", "image": "none.jpg", "chosen": "a", "rejected": "b"}, "image: no file 'none.jpg'"),
        ({"prompt": reply("q"), "chosen": "a", "rejected": "b"}, r"messages\[0\].role: is 'assistant' where"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(InputError, match="pairs.jsonl.*row 1'?, " + message):
        convert(tmp_path, row)


@pytest.mark.slow  # loads TRL
def test_trl_itself_reads_the_records_as_conversational_pairs(tmp_path):
    from trl import is_conversational

    _, (record,) = convert(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})
    pair = {"prompt": list(record.messages), "chosen": list(record.chosen), "rejected": list(record.rejected)}
    assert is_conversational(pair)
