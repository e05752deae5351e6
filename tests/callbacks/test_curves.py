# SPDX-License-Identifier: Apache-2.0
"""Charts draw what they are given."""

import numpy as np
import pytest
from PIL import ImageColor

from ixc_lightning.callbacks.curves import HEIGHT, LINE, TOP, WIDTH, draw_curves


def _heights(picture, chart=0):
    """Mean row of the line's pixels in each column of a chart that has some."""
    pixels = np.asarray(picture)[:, chart * WIDTH : (chart + 1) * WIDTH]
    drawn = (pixels == ImageColor.getrgb(LINE)).all(axis=2)
    return [np.flatnonzero(column).mean() for column in drawn.T if column.any()]


def test_charts_stand_side_by_side_and_the_line_goes_where_the_values_go():
    picture = draw_curves({"up": [0.0, 1.0, 2.0, 3.0], "down": [3.0, 2.0, 1.0]}, x_name="n")
    assert picture.size == (2 * WIDTH, HEIGHT)
    rising, falling = _heights(picture), _heights(picture, 1)
    assert rising[0] > HEIGHT / 2 > rising[-1] > TOP  # rows count downwards
    assert falling[0] < HEIGHT / 2 < falling[-1]


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0, 0.0], [-1e9, 1e9], list(map(float, range(500)))])
def test_one_value_equal_ones_and_many_are_drawn(values):
    assert _heights(draw_curves({"a": values}, x_name="n"))
