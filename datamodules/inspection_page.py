# SPDX-License-Identifier: Apache-2.0
"""A page of records with their pictures, for a browser, in one file.

Nothing of a record is trusted: all text is escaped, pictures are decoded and encoded anew, and the page
allows neither scripts nor anything from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.datamodules.processing import text_of
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError, Record

SIDE = 320
"""Pixels of the longer side of a picture on the page."""
FRAMES = 4
"""Frames shown of a clip."""
QUALITY = 85
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328 }
body { max-width: 60em; margin: 2em auto; padding: 0 1em }
article { border-top: 1px solid #d0d7de; padding: 1em 0 }
h2 { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4em 0; padding-left: .8em }
p { border-left: 3px solid #d0d7de }
p.chosen { border-color: #1a7f37 } p.rejected, p.problem { border-color: #cf222e }
b { font-weight: 600; color: #57606a } img { margin: .3em .3em .3em 0; vertical-align: top }
"""


def render_page(dataset: ShardDataset, numbers: Iterable[int], *, title: str) -> str:
    """Return the page of the records with these numbers; a broken one shows what is wrong with it.

    Args:
        dataset: the shards.
        numbers: of the records, in the order of the page.
        title: heading of the page.
    """
    articles = "\n".join(_article(dataset, number) for number in numbers)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{articles}\n</body>\n</html>\n"
    )


def spread_out(count: int, of: int) -> list[int]:
    """Return ``count`` numbers below ``of``, evenly from the first to the last, or all if there are fewer."""
    if count >= of:
        return list(range(of))
    return [round(place * (of - 1) / max(count - 1, 1)) for place in range(count)]


def _article(dataset: ShardDataset, number: int) -> str:
    try:
        lines = list(_lines(dataset.record(number)))
    except InputError as error:
        lines = [_paragraph("problem", "broken", str(error))]
    return f"<article>\n<h2>{escape(dataset.name(number))}</h2>\n{chr(10).join(lines)}\n</article>"


def _lines(record: Record) -> Iterator[str]:
    facts = {"source": record.source, "domain": record.domain, "margin": record.margin or None}
    facts |= {"answer": record.answer}
    shown = (f"<b>{name}</b> {escape(str(fact))}" for name, fact in facts.items() if fact is not None)
    yield f"<div>{' · '.join(shown)}</div>"
    for message in record.messages:
        yield from _message(record, message)
    for name, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
        yield from _answer(name, answer or ())


def _message(record: Record, message: Mapping[str, Any]) -> Iterator[str]:
    for part in message["content"]:
        if part["type"] == "text":
            yield _paragraph("", message["role"], part["text"])
        else:
            yield "<div>" + "".join(map(_picture, _pictures(record, part))) + "</div>"


def _answer(name: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield _paragraph(
            name, name if message["role"] == "assistant" else message["role"], text_of([message])
        )


def _pictures(record: Record, part: Mapping[str, Any]) -> list[Image.Image]:
    data, where = record.media[part["file"]], f"{record.shard}:{record.key}.{part['file']}"
    if part["type"] == "image":
        return [decode_image(data, where=where)]
    return [Image.fromarray(frame) for frame in decode_video(data, frames=FRAMES, where=where).frames]


def _paragraph(style: str, name: str, text: str) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<p{kind} dir="auto"><b>{escape(name)}</b> {escape(text)}</p>'


def _picture(picture: Image.Image) -> str:
    size = f"{picture.width}x{picture.height}"
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" title="{size}" alt="{size}">'
