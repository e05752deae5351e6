# SPDX-License-Identifier: Apache-2.0
"""Converters from the command line, and the page that lists them."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

from ixc_lightning.cli.main import main
from ixc_lightning.datamodules import sources
from tests.datamodules.sources.fixtures import answered, asked, picture, records, shown, write_jsonl

PAGE = Path(__file__).parents[3] / "docs" / "converters.md"
NAMES = sorted(
    module.name for module in pkgutil.iter_modules(sources.__path__) if not module.name.startswith("_")
)
CONVERTERS = [name for name in NAMES if hasattr(import_module(f"{sources.__name__}.{name}"), "DATA")]
COUNT = 17  # counted by hand: a converter that is not found shows here


def test_text_is_converted_from_the_command_line(tmp_path, capsys):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "a"}]
    source = write_jsonl(tmp_path / "my pairs.jsonl", *rows)
    main(["convert", "trl", source, str(tmp_path / "out"), "--domain", "charts", "--name", "mine"])
    (record,) = records(tmp_path / "out")
    assert shown(record) == (asked("q"), answered("a"), answered("b"), "charts")
    said = capsys.readouterr().out
    assert "mine: 2 rows gave 1 records" in said
    assert "left out, the responses are equal: 1" in said


def test_pictures_are_converted_from_the_command_line(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(picture("red"))
    rows = [{"image": name, "question": "q", "chosen": "a", "rejected": "b"} for name in ("1.jpg", "2.jpg")]
    source = write_jsonl(tmp_path / "rows.jsonl", *rows)
    options = ["--media", f"[{tmp_path},{tmp_path / 'images'}]", "--on_bad_row", "drop"]
    main(["convert", "rlaif_v", source, str(tmp_path / "out"), *options])
    (record,) = records(tmp_path / "out")
    assert record.media == {"00.jpg": picture("red")}


def test_a_bad_row_ends_in_one_message(tmp_path, capsys):
    source = write_jsonl(tmp_path / "rows.jsonl", {"chosen": "a"})
    with pytest.raises(SystemExit) as ended:
        main(["convert", "tulu_3_if", source, str(tmp_path / "out")])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert f"error: {source}, row 1, rejected: is missing" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"convert {name}" in said
    assert "rows to read at most" in said
    assert len(import_module(f"{sources.__name__}.{name}").__doc__) > 200


def test_every_converter_has_a_row_in_the_page_with_home_and_licence():
    table = {
        match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", PAGE.read_text(), re.MULTILINE)
    }
    assert sorted(table) == CONVERTERS
    assert len(CONVERTERS) == COUNT
    for name in CONVERTERS:
        data = import_module(f"{sources.__name__}.{name}").DATA
        assert data.name == name
        assert data.home in table[name]
        assert data.licence in table[name]
