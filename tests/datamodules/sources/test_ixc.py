# SPDX-License-Identifier: Apache-2.0
"""The IXC training JSON: its two conversations, its places of pictures, and its list of files."""

import json

import pytest

from ixc_lightning.datamodules.sources import ixc
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import answered, asked, picture, records, said, shown


def turns(*texts):
    return [{"from": ("human", "bot")[place % 2], "value": text} for place, text in enumerate(texts)]


def row(chosen, rejected, **fields):
    return {"id": 1, "conversations_a": turns(*chosen), "conversations_b": turns(*rejected)} | fields


ROWS = [
    row(["Two stars?", "Sirius, Vega"], ["Two stars?", "Mars"], language="English", turn=1),
    row(["What is it?", "red"], ["What is it?", "blue"], image="images/red.jpg"),
    row(
        ["Image1 <ImageHere>; Image2 <ImageHere>; Which is red?", "the first"],
        ["Image1 <ImageHere>; Image2 <ImageHere>; Which is red?", "the second"],
        image=["images/red.jpg", "images/blue.png"],
        model_a="a",
        model_b="b",
    ),
    row(["q1", "a1", "q2", "a2"], ["q1", "a1", "q2", "a3"]),
    row(["q1", "a1", "q2", "a2"], ["q1", "b1", "q2", "b2"]),
    row(["clip?", "a rise"], ["clip?", "a fall"], image="images/clip.mp4"),
]


@pytest.fixture
def folder(tmp_path):
    """The published JSON with its pictures beside it."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "red.jpg").write_bytes(picture("red"))
    (tmp_path / "set" / "images" / "blue.png").write_bytes(picture("blue", "PNG"))
    (tmp_path / "set" / "images" / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(20))
    (tmp_path / "set" / "mmif.json").write_text(json.dumps(ROWS))
    return tmp_path / "set"


def test_rows_become_pairs_with_their_media_where_the_text_has_them(folder, tmp_path):
    report = ixc.convert(str(folder / "mmif.json"), str(tmp_path / "out"))
    found = records(tmp_path / "out")
    assert [shown(record)[:3] for record in found] == [
        (asked("Two stars?"), answered("Sirius, Vega"), answered("Mars")),
        (asked(("image", "00.jpg"), "What is it?"), answered("red"), answered("blue")),
        (
            asked("Image1 ", ("image", "00.jpg"), "; Image2 ", ("image", "01.png"), "; Which is red?"),
            answered("the first"),
            answered("the second"),
        ),
        ((said("user", "q1"), said("assistant", "a1"), said("user", "q2")), answered("a2"), answered("a3")),
        (
            asked("q1"),
            (said("assistant", "a1"), said("user", "q2"), said("assistant", "a2")),
            (said("assistant", "b1"), said("user", "q2"), said("assistant", "b2")),
        ),
        (asked(("video", "00.mp4"), "clip?"), answered("a rise"), answered("a fall")),
    ]
    assert found[2].media == {"00.jpg": picture("red"), "01.png": picture("blue", "PNG")}
    assert {(record.source, record.domain) for record in found} == {("ixc", "mmif")}
    assert (report.dropped, report.unknown_fields) == ({}, {})


def test_conversations_without_a_common_question_are_dropped(folder, tmp_path):
    (folder / "mmif.json").write_text(
        json.dumps([*ROWS, row(["q", "a"], ["p", "b"]), row(["q"], ["q", "b"])])
    )
    report = ixc.convert(str(folder / "mmif.json"), str(tmp_path / "out"))
    assert report.dropped == {
        "the conversations share no prompt": 1,
        "a conversation does not end with the assistant": 1,
    }


def test_a_list_of_files_gives_a_folder_and_a_weight_for_each(folder, tmp_path):
    (folder / "text only.json").write_text(json.dumps(ROWS[:1]))
    (folder / "data.txt").write_text("mmif.json 2.5\n\ntext only.json  10\n")
    report = ixc.convert(str(folder / "data.txt"), str(tmp_path / "out"))
    assert report.weights == {"mmif": 2.5, "text only": 10.0}
    assert report.folders == {
        "mmif/image-jpg": 1,
        "mmif/images-jpg1-png1": 1,
        "mmif/text": 3,
        "mmif/video-mp4": 1,
        "text only/text": 1,
    }
    assert [record.domain for record in records(tmp_path / "out" / "text only")] == ["text only"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mmif.json", "line 1: must be a path and a positive factor, not 'mmif.json'"),
        ("mmif.json 1\nmmif.json -1", "line 2: must be a path and a positive factor"),
        ("mmif.json k", "line 1: must be a path and a positive factor"),
        ("other.json 1", "line 1: no file 'other.json' here or in"),
        ("mmif.json 1\nmmif.json 2", "line 2: a file named 'mmif' comes twice"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(folder, tmp_path, text, message):
    (folder / "data.txt").write_text(text)
    with pytest.raises(InputError, match="data.txt, " + message):
        ixc.convert(str(folder / "data.txt"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ["images/red.jpg"] * 3}, "row 1, media: the row gives 3, but its text has places for 2"),
        ({"image": "images/none.jpg"}, "row 1, image: no file"),
        ({"conversations_b": None}, "row 1, conversations_b: is missing"),
        ({"conversations_b": [{"from": "judge", "value": "x"}]}, r"row 1, conversations_b\[0\]: its role"),
    ],
)
def test_a_bad_row_is_named(folder, tmp_path, change, message):
    (folder / "mmif.json").write_text(json.dumps([ROWS[2] | change]))
    with pytest.raises(InputError, match="mmif.json, " + message):
        ixc.convert(str(folder / "mmif.json"), str(tmp_path / "out"))
