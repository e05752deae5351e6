# SPDX-License-Identifier: Apache-2.0
"""Small line charts drawn as one picture. One figure is not worth a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 360, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 40  # margins of the axes
TICKS = 5
INK, RULE, LINE = "#1f2328", "#d0d7de", "#0969da"
DOT = 2


def draw_curves(curves: Mapping[str, Sequence[float]], *, x_name: str) -> Image.Image:
    """One chart beside the other, each with its title, over 1, 2, 3, ….

    Args:
        curves: heights by title, at least one each.
        x_name: what is counted along the axis.
    """
    canvas = Image.new("RGB", (WIDTH * len(curves), HEIGHT), "white")
    for number, (title, values) in enumerate(curves.items()):
        canvas.paste(_chart(title, values, x_name), (number * WIDTH, 0))
    return canvas


def _chart(title: str, values: Sequence[float], x_name: str) -> Image.Image:
    chart = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(chart), ImageFont.load_default(size=12)
    low, high = min(values), max(values)
    pad = (high - low) * 0.05 or max(abs(high) * 0.05, 0.5)
    low, high = low - pad, high + pad
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(n: int, value: float) -> tuple[float, float]:
        along = 0.5 if len(values) == 1 else (n - 1) / (len(values) - 1)
        return LEFT + along * width, TOP + height * (high - value) / (high - low)

    draw.text((LEFT, 10), title, fill=INK, font=font)
    for tick in range(TICKS):
        value = low + (high - low) * tick / (TICKS - 1)
        y = place(1, value)[1]
        draw.line([(LEFT, y), (LEFT + width, y)], fill=RULE)
        draw.text((LEFT - 6, y), f"{value:.3g}", fill=INK, font=font, anchor="rm")
    for n in _counts(len(values)):
        draw.text((place(n, low)[0], TOP + height + 4), str(n), fill=INK, font=font, anchor="ma")
    draw.text((LEFT + width / 2, HEIGHT - 6), x_name, fill=INK, font=font, anchor="ms")
    points = [place(n, value) for n, value in enumerate(values, start=1)]
    if len(points) > 1:
        draw.line(points, fill=LINE, width=2)
    for x, y in points:
        draw.ellipse([x - DOT, y - DOT, x + DOT, y + DOT], fill=LINE)
    return chart


def _counts(last: int) -> list[int]:
    """At most ``TICKS`` whole numbers from 1 to the last, evenly spread."""
    ticks = min(TICKS, last)
    return sorted({1 + round((last - 1) * tick / max(ticks - 1, 1)) for tick in range(ticks)})
