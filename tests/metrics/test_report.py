# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark: both conventions, intervals around the figures, ties counted, the paper's rows."""

import re

import pytest

from ixc_lightning.metrics import MMRLHFRewardBench, VLRewardBench
from ixc_lightning.metrics.report import make_report, markdown, weights_of
from tests.metrics.scored import NAN, figures, item, numbered

ITEMS = numbered(
    *(item("general", float(n % 3 > 0), 0.5) for n in range(12)),
    *(item("hallucination", float(n % 2), 0.0) for n in range(10)),
    *(item("reasoning", float(n > 1), 0.5) for n in range(6)),
)


def rows(page):
    """The cells of every row of the page's tables, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_every_figure_lies_in_its_interval_and_the_same_seed_gives_the_same():
    report = make_report(VLRewardBench(), ITEMS, model="m", resamples=200)
    for name, value in figures(VLRewardBench(), ITEMS).items():
        figure = report.figures[name]
        assert figure.value == value
        assert figure.low <= value <= figure.high
        assert figure.low < figure.high
    assert report == report._replace(
        figures=make_report(report.benchmark, ITEMS, model="m", resamples=200).figures
    )
    other = make_report(report.benchmark, ITEMS, model="m", resamples=200, seed=1)
    assert other.figures != report.figures


def test_pairs_of_one_prompt_make_the_interval_wider():
    alone = numbered(*(item("mcq", float(n // 5 % 2), 0.5, id=str(n)) for n in range(40)))
    together = [one._replace(id=str(one.row // 5)) for one in alone]
    widths = []
    for items in (alone, together):
        figure = make_report(MMRLHFRewardBench(), items, model="m", resamples=500).figures["official_overall"]
        widths.append(figure.high - figure.low)
    assert widths[1] > 1.5 * widths[0]


def test_the_first_weights_are_ones():
    weights = weights_of(VLRewardBench(), ITEMS, resamples=3, seed=0)
    assert weights.shape == (4, len(ITEMS))
    assert (weights[0] == 1).all()


def test_the_page_shows_both_conventions_side_by_side_and_names_them():
    page = rows(markdown(make_report(VLRewardBench(), ITEMS, model="m", resamples=50)))
    assert page["figure"] == ["official", "paper"]
    # Five of the ten hallucination items are ties: 50 % officially, 75 % with half of them.
    assert page["hallucination"][0].isdigit()  # the table of categories comes later and has the same name
    whole = markdown(make_report(VLRewardBench(), ITEMS, model="m", resamples=50))
    assert re.search(r"\| hallucination \| 50\.0 \[[\d., ]+\] \| 75\.0 \[[\d., ]+\] \|", whole)


def test_the_page_counts_items_ties_and_scores_that_are_no_number():
    items = [*ITEMS[:-1], ITEMS[-1]._replace(chosen=(NAN,))]
    page = rows(markdown(make_report(VLRewardBench(), items, model="m", resamples=5)))
    assert page["general"] == ["12", "66.7", "0", "0"]
    assert page["hallucination"] == ["10", "50.0", "5", "0"]
    assert page["reasoning"] == ["6", "50.0", "0", "1"]


def test_the_page_says_what_was_left_out_and_how_large_the_benchmark_is():
    page = markdown(make_report(VLRewardBench("half"), ITEMS, model="m", left_out=3, resamples=5))
    assert "28 items (the releases have 1,247 or 1,250)" in page
    assert "3 items could not be scored" in page
    assert "A tie counts as half" in page


def test_the_model_stands_beside_the_rows_of_the_paper():
    page = rows(markdown(make_report(VLRewardBench(), ITEMS, model="my|model", resamples=5)))
    assert page["IXC-2.5-Reward"] == ["84.7", "62.5", "62.9", "65.8", "70.0"]
    assert page[r"**my\|model** (official)"] == ["66.7", "50.0", "66.7", "60.7", "61.1"]


def test_a_category_without_items_has_a_dash():
    page = markdown(make_report(VLRewardBench(), ITEMS[:12], model="m", resamples=5))
    assert "| macro | - | - |" in page


def test_there_is_no_report_of_nothing():
    with pytest.raises(ValueError, match="0 items"):
        make_report(VLRewardBench(), [], model="m")
