# SPDX-License-Identifier: Apache-2.0
"""Tables with pictures drawn as one picture, since TensorBoard's text pages take none."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ixc_lightning.types import Example

PICTURE = 72  # pixels of a thumbnail's longer side
COLUMNS = 4  # thumbnails per line
TEXT_WIDTH = 72  # letters per line
MAX_LINES = 8  # of each paragraph; the rest is left out
LINE = 18  # pixels per line of text
MARGIN = 10
RIGHT, WRONG, INK, RULE = "#1a7f37", "#cf222e", "#1f2328", "#d0d7de"


class Row(NamedTuple):
    """A pair and the scores of its two responses."""

    example: Example
    chosen_score: float
    rejected_score: float


class Panel(NamedTuple):
    """One row of a table: pictures on the left, and beside them paragraphs, each with its colour."""

    pictures: list[Image.Image]
    paragraphs: list[tuple[str, str]]


def render_table(rows: Sequence[Row]) -> Image.Image:
    """One row for each pair: its pictures, its question, and both responses with their scores.

    A pair that the model gets right has its scores in green, any other in red.
    """
    return render_panels([Panel(row.example.pictures, _paragraphs(row)) for row in rows])


def render_panels(panels: Sequence[Panel]) -> Image.Image:
    """The panels one below the other."""
    drawn = [_render_panel(panel) for panel in panels]
    table = Image.new("RGB", (drawn[0].width, sum(row.height for row in drawn)), "white")
    top = 0
    for row in drawn:
        table.paste(row, (0, top))
        top += row.height
    return table


def _render_panel(panel: Panel) -> Image.Image:
    lines = [(line, colour) for text, colour in panel.paragraphs for line in _wrap(text)]
    pictures = [_thumbnail(picture) for picture in panel.pictures]
    picture_lines = -(-len(pictures) // COLUMNS)
    height = max(len(lines) * LINE + MARGIN, picture_lines * (PICTURE + MARGIN)) + MARGIN
    left = COLUMNS * (PICTURE + MARGIN) + 2 * MARGIN
    canvas = Image.new("RGB", (left + TEXT_WIDTH * 9, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=14)
    for place, picture in enumerate(pictures):
        column, line = place % COLUMNS, place // COLUMNS
        canvas.paste(picture, (MARGIN + column * (PICTURE + MARGIN), MARGIN + line * (PICTURE + MARGIN)))
    for number, (text, colour) in enumerate(lines):
        draw.text((left, MARGIN + number * LINE), text, fill=colour, font=font)
    draw.line([(0, height - 1), (canvas.width, height - 1)], fill=RULE)
    return canvas


def _paragraphs(row: Row) -> list[tuple[str, str]]:
    colour = RIGHT if row.chosen_score > row.rejected_score else WRONG
    return [
        (row.example.prompt, INK),
        (f"chosen {row.chosen_score:+.2f}: {row.example.chosen}", colour),
        (f"rejected {row.rejected_score:+.2f}: {row.example.rejected}", colour),
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, TEXT_WIDTH, max_lines=MAX_LINES, placeholder=" …") or [""]


def _thumbnail(picture: Image.Image) -> Image.Image:
    """The picture with its longer side at the size of a thumbnail, small ones enlarged."""
    scale = PICTURE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(
        size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    )
