# SPDX-License-Identifier: Apache-2.0
"""The page shows records, and nothing that a record says becomes part of the page."""

import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from ixc_lightning.datamodules.inspection import open_any
from ixc_lightning.datamodules.inspection_page import SIDE, render_page, spread_out
from tests.datamodules.broken import write_tar
from tests.datamodules.test_inspection import picture

ATTACK = "\"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'<!--"
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "article", "div", "b", "p", "img"}


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    @property
    def pictures(self):
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        data = (base64.b64decode(source.partition(",")[2]) for source in sources)
        return [Image.open(io.BytesIO(item)) for item in data]


def record(**fields):
    content = [{"type": "image", "file": "00.png"}, {"type": "text", "text": "What is it?"}]
    return {
        "id": "1",
        "source": "test",
        "domain": "reading",
        "messages": [{"role": "user", "content": content}],
        "chosen": "A red field.",
        "rejected": "A blue field.",
        **fields,
    }


def page(tmp_path, *members, title="records"):
    write_tar(tmp_path / "a.tar", members)
    dataset, _ = open_any([tmp_path / "a.tar"])
    return Page(render_page(dataset, range(len(dataset)), title=title))


def test_a_record_is_shown_with_its_picture(tmp_path):
    shown = page(
        tmp_path, ("s.json", record(answer=7, margin=0.5)), ("s.00.png", picture(640, 320, shade=200))
    )
    for text in (
        "a.tar:s",
        "reading",
        "What is it?",
        "A red field.",
        "A blue field.",
        "answer 7",
        "margin 0.5",
    ):
        assert text in shown.text
    (image,) = shown.pictures
    assert image.size == (SIDE, SIDE // 2)
    assert max(abs(a - b) for a, b in zip(image.getpixel((9, 9)), (200, 0, 0), strict=True)) < 5


def test_a_clip_is_shown_by_frames(digits):
    dataset, _ = open_any([next((digits / "preference/train").glob("*.tar"))])
    number = next(number for number in range(len(dataset)) if dataset.modality(number) == "video")
    assert len(Page(render_page(dataset, [number], title="")).pictures) == 4


@pytest.mark.parametrize("name", ["source", "domain", "chosen", "rejected", "answer", "prompt", "title"])
def test_what_a_record_says_is_text(name, tmp_path):
    fields = {} if name in ("prompt", "title") else {name: ATTACK}
    hostile = record(**fields)
    if name == "prompt":
        hostile["messages"][0]["content"][1]["text"] = ATTACK
    members = ("s.json", hostile), ("s.00.png", picture(8, 8))
    shown = page(tmp_path, *members, title=ATTACK if name == "title" else "records")
    assert shown.tags <= TAGS
    assert ATTACK in shown.text
    assert not [attribute for attribute, _ in shown.attributes if attribute.startswith("on")]
    assert len(shown.pictures) == 1


def test_a_hostile_key_is_text(tmp_path):
    key = "<script>x<"
    shown = page(tmp_path, (f"{key}.json", record()), (f"{key}.00.png", picture(8, 8)))
    assert shown.tags <= TAGS
    assert key in shown.text


def test_a_file_that_only_claims_to_be_a_picture_is_not_passed_on(tmp_path):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    good = ("s.json", record()), ("s.00.png", picture(8, 8))
    shown = page(tmp_path, *good, ("t.json", record()), ("t.00.png", svg))
    assert len(shown.pictures) == 1
    assert "broken" in shown.text
    assert "t.00.png: cannot be decoded" in shown.text


def test_the_page_forbids_scripts_and_addresses(tmp_path):
    shown = page(tmp_path, ("s.json", record()), ("s.00.png", picture(8, 8)))
    policy = dict(shown.attributes)["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    ("count", "of", "numbers"),
    [(3, 10, [0, 4, 9]), (1, 10, [0]), (5, 3, [0, 1, 2]), (2, 2, [0, 1]), (4, 4, [0, 1, 2, 3])],
)
def test_records_are_taken_evenly(count, of, numbers):
    assert spread_out(count, of) == numbers
