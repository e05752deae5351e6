# SPDX-License-Identifier: Apache-2.0
"""The page shows the lowest records first with their pictures, stays small, and trusts nothing."""

import re

import pytest

from ixc_lightning.datamodules import cleaning_page
from ixc_lightning.datamodules.cleaning_verdicts import Limits, ScoreTable, judge
from ixc_lightning.datamodules.samples import SampleShards
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from tests.datamodules.test_cleaning import data, noisy, told  # noqa: F401
from tests.datamodules.test_cleaning_verdicts import row
from tests.datamodules.test_contrast import record
from tests.datamodules.test_inspection import picture
from tests.datamodules.test_inspection_page import ATTACK, TAGS, Page

MORE_TAGS = {"input", "label", "main", "rect", "svg", "table", "td", "th", "tr"}


def keys(text):
    return re.findall(r"<h2>[^<]*:([^<:]+)</h2>", text)


@pytest.fixture
def page(tiny_folder, noisy, tmp_path):  # noqa: F811
    """Writes the page of the noisy set and returns its text."""

    def write(shown=6, **limits):
        module = data(tiny_folder, noisy)
        limits = Limits(**(limits or {"threshold": -5.0}))
        module.write_cleaned(lambda: told(noisy), tmp_path / "out", limits=limits, shown=shown)
        return (tmp_path / "out/report.html").read_text()

    return write


def test_the_lowest_come_first_removed_ones_before_kept_ones(page, noisy):  # noqa: F811
    rows = sorted(told(noisy), key=lambda row: row["score"])
    order = [row["key"] for row in rows]
    text = page(shown=6)
    assert keys(text) == [*order[:6], *order[12:14]]  # of 12 removed ones six, and two of those that stay
    assert "Removed: 6 of 12, lowest first" in text
    assert "Kept: 2 of 36, lowest first" in text
    assert "score -9.9" in text or f"score {rows[0]['score']:.4g}" in text


def test_pictures_and_frames_of_clips_are_on_the_page(page, noisy):  # noqa: F811
    pictures = Page(page(shown=12)).pictures
    shards = SampleShards(noisy, kind="instruction")
    removed = [row["row"] for row in told(noisy) if row["score"] < -5]
    kept = sorted((row["score"], row["row"]) for row in told(noisy) if row["score"] > -5)[:3]
    expected = 0
    for number in [*removed, *(number for _, number in kept)]:
        for part in shards.record(number).parts:
            expected += {"text": 0, "image": 1, "video": 4}[part["type"]]
    assert len(pictures) == expected
    assert expected > 12


def test_each_domain_has_a_histogram_with_all_its_records(page, noisy):  # noqa: F811
    text = page()
    domains = {row["domain"] for row in told(noisy)}
    table = re.search(r"<table>\n<tr><th>domain</th>.*?</table>", text, flags=re.DOTALL)[0]
    assert table.count("<svg") == len(domains)
    counts = dict(re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td>", table))
    for domain in domains:
        assert int(counts[domain]) == sum(row["domain"] == domain for row in told(noisy))
    assert 'rect class="r"' in table
    assert 'rect class="k"' in table


def test_the_area_under_the_curve_is_on_the_page(page):
    text = page()
    assert "Area under the ROC curve: 1.000" in text
    assert "recall, mismatched" in text


def test_one_domain_can_be_shown_without_a_script(page):
    text = page()
    assert "<script" not in text
    assert "default-src 'none'" in text
    for group in re.findall(r'id="s(\d+)"', text):
        assert f"#s{group}:checked ~ main article:not(.g{group}) {{ display: none }}" in text
        assert f'class="g{group}"' in text or group != "0"


def test_nothing_of_a_record_becomes_part_of_the_page(tmp_path):
    fields = {**record(0, ATTACK, domain=ATTACK), "source": ATTACK}
    fields["messages"][0]["content"] = [{"type": "image", "file": "00.png"}, {"type": "text", "text": ATTACK}]
    samples = [Sample("a", fields, {"00.png": picture(20, 10)}), Sample("b", record(1, "no", domain="b"))]
    write_shards(samples, tmp_path / "set", kind="instruction")
    table = ScoreTable.read([row(0, 1.0, ATTACK, "image"), row(1, 3.0, "b")], 2)
    verdicts = judge(table, Limits(z_score=9.0, threshold=2.0))
    summary = {"records": 2, "kept": 0, "removed": 2, "unreadable": 0, "removed_by": {ATTACK: 1}}
    shards = SampleShards(tmp_path / "set", kind="instruction")
    cleaning_page.write_page(
        tmp_path / "page.html", shards, table, verdicts, {**summary, "planted_noise": None}, shown=9
    )
    page = Page((tmp_path / "page.html").read_text())
    assert page.tags <= TAGS | MORE_TAGS
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(ATTACK) >= 5  # source, question, answer, domain in table and switch
    assert len(page.pictures) == 1


def test_the_page_stays_below_its_limit_and_says_what_is_missing(page, monkeypatch):
    whole = page(shown=12)
    limit = len(whole.encode()) // 2
    monkeypatch.setattr(cleaning_page, "MAX_BYTES", limit)
    text = page(shown=12)
    assert len(text.encode()) < limit + 500
    shown, left = len(keys(text)), [int(n) for n in re.findall(r"(\d+) more would make this page too", text)]
    assert left
    assert shown + sum(left) == len(keys(whole))
