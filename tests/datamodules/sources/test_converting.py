# SPDX-License-Identifier: Apache-2.0
"""The way of every converter: nothing is lost without a reason, and what is written others can read."""

import json

import pytest

from ixc_lightning.datamodules.shard_writer import Manifest
from ixc_lightning.datamodules.sources._converting import DataSet, convert_rows
from ixc_lightning.datamodules.sources._drafts import Draft, Dropped, assistant, place_media, user
from ixc_lightning.datamodules.sources._media import MediaStore
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import answered, asked, picture, records, shown, write_jsonl

DATA = DataSet("stars", "some/stars", "CC0", required=("good", "bad"), optional=("question", "image"))
JPG, PNG = picture("red"), picture("blue", "PNG")


def drafts(row):
    """One pair, or as many as there are questions; a row without good answers is left out."""
    if row.text("good") == "none":
        raise Dropped("no answer is good")
    with MediaStore() as store:
        media = store.load(row.get("image"), row, "image")
    for question in row.get("question") or ["Which star?"]:
        messages = place_media([user(question)], media, row)
        yield Draft(row.id(), "sky", messages, [assistant(row.text("good"))], [assistant(row.text("bad"))])


def rows(folder):
    """A source with pictures of both kinds, text, several pictures, and pairs that mean nothing."""
    for name, data in (("a.jpg", JPG), ("b.png", PNG)):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return [
        {"good": "Sirius", "bad": "Mars", "image": "a.jpg"},
        {"good": "Vega", "bad": "Moon"},
        {"good": "none", "bad": "Moon"},
        {"good": "Deneb", "bad": "Deneb", "colour": "white"},
        {"good": "Altair", "bad": "Sun", "image": "b.png"},
        {"good": "Rigel", "bad": "Venus", "question": ["First?", " ", "Third?"]},
        {"good": "Castor", "bad": "Pluto", "image": ["a.jpg", "b.png"], "question": ["<image> or\n<image>?"]},
    ]


def convert(source, out, **options):
    return convert_rows(DATA, drafts, source, str(out), **options)


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "set" / "data.jsonl", *rows(tmp_path / "set"))


def test_every_row_becomes_records_or_is_counted_with_its_reason(source, tmp_path, capsys):
    report = convert(source, tmp_path / "out", settings={"stars": 5})
    assert [shown(record)[0] for record in records(tmp_path / "out")] == [
        asked(("image", "00.jpg"), "Which star?"),
        asked("Which star?"),
        asked(("image", "00.png"), "Which star?"),
        asked("First?"),
        asked("Third?"),
        asked(("image", "00.jpg"), " or\n", ("image", "01.png"), "?"),
    ]
    assert (report.rows, report.records) == (7, 6)
    assert report.dropped == {
        "no answer is good": 1,
        "the responses are equal": 1,
        "a message of the prompt is empty": 1,
    }
    assert report.folders == {"image-jpg": 1, "image-png": 1, "images-jpg1-png1": 1, "text": 3}
    assert report.unknown_fields == {"colour": f"{source}, row 4"}
    said = capsys.readouterr().out
    assert "stars: 7 rows gave 6 records" in said
    assert "left out, no answer is good: 1" in said
    assert "unknown column 'colour'" in said
    assert "licence of the data: CC0" in said


def test_records_hold_the_original_bytes_and_the_way_back_to_the_row(source, tmp_path):
    convert(source, tmp_path / "out")
    first = records(tmp_path / "out")[0]
    assert first.media == {"00.jpg": JPG}
    assert (first.key, first.source, first.domain) == ("00000000", "stars", "sky")
    assert (first.chosen, first.rejected) == (answered("Sirius"), answered("Mars"))


def test_the_report_lies_beside_the_folders_and_the_spool_is_gone(source, tmp_path):
    report = convert(source, tmp_path / "out", settings={"stars": 5})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["conversion.json", "image-jpg", "image-png", "images-jpg1-png1", "text"]
    saved = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (saved["rows"], saved["records"], saved["settings"]) == (7, 6, {"stars": 5})
    assert saved["dropped"] == report.dropped
    assert Manifest.load(tmp_path / "out" / "text").samples == 3


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        convert(source, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 4 * 4 + 1
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_limit_reads_so_many_rows(source, tmp_path):
    assert convert(source, tmp_path / "out", limit=3).rows == 3
    assert len(records(tmp_path / "out")) == 2
    with pytest.raises(InputError, match="limit is 0, but at least one row must be read"):
        convert(source, tmp_path / "none", limit=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"good": "a"}, "row 2, bad: is missing; is this the data set that the converter is for"),
        ({"good": "a", "bad": None}, "row 2, bad: is missing"),
        ({"good": 1, "bad": "b"}, "row 2, good: must be a string, not int"),
        ({"good": "a", "bad": "b", "image": "c.jpg"}, "row 2, image: no file 'c.jpg'"),
        ({"good": "\ud800", "bad": "b"}, "'row 2', .*(surrogate|UTF-8)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_leaves_nothing_behind(tmp_path, row, message):
    source = write_jsonl(tmp_path / "data.jsonl", {"good": "a", "bad": "b"}, row, {"good": "c", "bad": "d"})
    with pytest.raises(InputError, match="data.jsonl.*" + message):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    report = convert(source, tmp_path / "out", on_bad_row="drop")
    assert [record.chosen for record in records(tmp_path / "out")] == [answered("a"), answered("c")]
    assert report.dropped == {"the row is bad": 1}
    assert len(report.bad_rows) == 1


def test_a_column_that_the_mapping_never_reads_must_be_there_too(tmp_path):
    source = write_jsonl(tmp_path / "data.jsonl", {"good": "a", "bad": "b"})
    data = DATA._replace(required=("good", "bad", "night"))
    with pytest.raises(InputError, match="row 1, night: is missing"):
        convert_rows(data, drafts, source, str(tmp_path / "out"))


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    source = write_jsonl(tmp_path / "data.jsonl", {"good": "none", "bad": "b"})
    with pytest.raises(InputError, match=r"no record is left(.|\n)*no answer is good: 1"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_content_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        convert(source, tmp_path / "out")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the readers of datasets 5.2 leave the tars open
def test_hugging_face_datasets_reads_every_folder_whole(tmp_path):
    from datasets import load_dataset

    # More samples than the reader takes its columns from, and the longest conversations last.
    few = [{"good": f"a{n}", "bad": f"b{n}"} for n in range(7)]
    source = write_jsonl(tmp_path / "set" / "data.jsonl", *few, *rows(tmp_path / "set"))
    report = convert(source, tmp_path / "out")
    for folder, count in report.folders.items():
        shards = [str(path) for path in sorted((tmp_path / "out" / folder).glob("*.tar"))]
        found = load_dataset(
            "webdataset", data_files=shards, split="train", cache_dir=str(tmp_path / "cache")
        )
        assert found.num_rows == count
        ours = {record.key: record for record in records(tmp_path / "out" / folder)}
        for item in found:
            record = ours[item["__key__"]]
            assert item["json"]["chosen"][0]["content"][0]["text"] == record.chosen[0]["content"][0]["text"]
            assert {name for name in item if name[0].isdigit()} == set(record.media)
            assert all(item[name].size == (8, 6) for name in record.media)
