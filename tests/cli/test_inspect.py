# SPDX-License-Identifier: Apache-2.0
"""The command that shows what shards hold: its figures, its width, its page, its errors."""

import pytest

from ixc_lightning.cli.main import main
from tests.datamodules.broken import write_tar
from tests.datamodules.test_inspection_page import Page
from tests.datamodules.web import serve
from tests.digits import HELDOUT, PAIRS

WIDTH = 80


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def text_record(**fields):
    record = {"id": "1", "source": "test", "domain": "reading", "chosen": "1", "rejected": "2"}
    return record | {"messages": [{"role": "user", "content": "Which?"}]} | fields


def rows(said):
    """First and second cell of every row whose second cell is a number."""
    cells = [line.rsplit(maxsplit=2) for line in said.splitlines()]
    return {
        cell[0].strip(): cell[1] for cell in cells if len(cell) == 3 and cell[1].replace(",", "").isdigit()
    }


def test_the_tables_say_what_is_there_in_80_columns(digits, capsys):
    main(["inspect", str(digits / "preference/train")])
    said = capsys.readouterr().out
    assert said.startswith(f"{PAIRS} preference records in 1 shard, ")
    counts = rows(said)
    assert counts["text"] == counts["image"] == counts["multi_image"] == counts["video"] == "12"
    assert counts["uci-digits"] == str(PAIRS)
    assert "chosen / rejected, characters" in said
    assert "tokens" not in said
    assert max(map(len, said.splitlines())) <= WIDTH


def test_tokens_are_counted_where_a_processor_is_named(digits, tiny_folder, capsys):
    main(["inspect", str(digits / "preference/heldout"), "--processor", str(tiny_folder)])
    said = capsys.readouterr().out
    assert "prompt and response, tokens" in said
    assert max(map(len, said.splitlines())) <= WIDTH


def test_the_page_is_written(digits, tmp_path, capsys):
    target = tmp_path / "new" / "page.html"
    main(["inspect", str(digits / "preference/heldout"), "--html", str(target), "--records", "5"])
    assert f"{target}: 5 records" in capsys.readouterr().out
    page = Page(target.read_text(encoding="utf-8"))
    assert page.text.count("\nchosen ") == 5
    assert page.pictures


def test_names_and_messages_of_any_length_and_content_stay_in_80_columns(tmp_path, capsys):
    long, codes, markup = "x" * 300, "\x1b[31mred\x07", "[bold]not bold[/bold]"
    domains = [long, codes, markup, *(f"domain {n:02d}" for n in range(20))]
    members = [(f"s{n}.json", text_record(domain=domain)) for n, domain in enumerate(domains)]
    write_tar(tmp_path / "a.tar", [*members, ("bad.json", text_record(domain=None, source="y" * 200))])
    main(["inspect", str(tmp_path / "a.tar")])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= WIDTH
    assert "\x1b" not in said
    assert "\x07" not in said
    assert markup in said
    assert "11 more" in said
    assert "1 broken" in said.splitlines()[0]
    assert "sample 'bad', domain: must be a string" in " ".join(said.split())


def test_shards_at_an_address_are_shown(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve() as web:
        web.put(digits / "preference/heldout", "set")
        main(["inspect", f"{web.url}/set", "--html", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.startswith(f"{HELDOUT} preference records in 1 shard, ")
    assert f"{web.url}/set/shard-000000.tar:" in Page((tmp_path / "page.html").read_text()).text
    assert list((tmp_path / ".cache/ixc_lightning/shards").glob("*/shard-000000.tar"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}/nothing.tar"], "no such shard"),
        (["{digits}", "--records", "0"], "--records is 0"),
        (["{digits}", "--html", "{folder}"], "cannot be written"),
    ],
)
def test_what_cannot_be_shown_ends_in_one_message(words, message, digits, tmp_path, capsys):
    names = {"folder": tmp_path, "digits": digits / "preference/heldout"}
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *(word.format(**names) for word in words)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
