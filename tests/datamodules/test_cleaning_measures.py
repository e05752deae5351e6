# SPDX-License-Identifier: Apache-2.0
"""Areas, precision and recall by hand, and against counting every pair."""

import numpy as np
import pytest

from ixc_lightning.datamodules.cleaning_measures import SHARES, UNKNOWN, NoiseLabels, measure
from ixc_lightning.datamodules.cleaning_verdicts import Names

TOLERANCE = 1e-12  # float64, counts divided by counts


def labels(*names):
    found = NoiseLabels(len(names))
    for number, name in enumerate(names):
        found.add(number, {} if name is ... else {"answer": {"noise": name, "answer": 7}})
    return found


def measured(found, values, removed=None, **rankings):
    values = np.asarray(values, dtype=float)
    removed = np.zeros(len(values), dtype=bool) if removed is None else np.asarray(removed)
    parts = Names(["b", "a"], np.arange(len(values)) % 2)
    return measure(found, {"score": values, **rankings}, removed, by="score", groups={"domain": parts})


def test_by_hand():
    found = measured(
        labels("empty", None, "swap", None, "swap"),
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [True, True, True, False, False],
        other=np.array([5.0, 4.0, 3.0, 2.0, 1.0]),
    )
    # of the 3 x 2 pairs of a noisy and a sound record, 1 < 2, 1 < 4 and 3 < 4 are in order
    assert found["auc"] == pytest.approx(3 / 6)
    assert found["auc_by_ranking"] == pytest.approx({"score": 3 / 6, "other": 3 / 6})
    assert found["auc_by_kind"] == pytest.approx({"empty": 1.0, "swap": 1 / 4})
    assert found["auc_by_domain"] == {"a": None, "b": None}  # all sound, all noise
    assert found["noise"] == {"empty": 1, "swap": 2}
    assert found["sound"] == 2
    assert found["removed"] == {
        "share": 3 / 5,
        "removed": 3,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "recall_by_kind": {"empty": 1.0, "swap": 0.5},
    }
    assert [(point["removed"], point["at_most"], point["precision"]) for point in found["lowest"]] == [
        (1, 1.0, 1.0),  # 15 % of five, rounded, and 20 %; of smaller shares nothing is left
        (1, 1.0, 1.0),
        (2, 2.0, 0.5),
    ]


def test_the_area_counts_pairs_and_ties_half():
    rng = np.random.default_rng(0)
    noise = rng.random(200) < 0.3
    values = rng.integers(0, 12, 200) - 2 * noise
    found = measured(labels(*["x" if bad else None for bad in noise]), values)
    bad, good = values[noise][:, None], values[~noise][None]
    assert found["auc"] == pytest.approx(((bad < good) + 0.5 * (bad == good)).mean(), abs=TOLERANCE)
    for share, point in zip(SHARES, found["lowest"], strict=True):
        lowest = np.argsort(values, kind="stable")[: round(share * 200)]
        assert point["precision"] == pytest.approx(noise[lowest].mean(), abs=TOLERANCE)
        assert point["recall"] == pytest.approx(noise[lowest].sum() / noise.sum(), abs=TOLERANCE)
        assert point["at_most"] == values[lowest].max()


def test_the_area_is_1_where_all_noise_is_below_0_where_it_is_above_and_a_half_where_all_is_equal():
    found = labels("x", "x", None, None)
    for values, area in (([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([5, 5, 5, 5], 0.5)):
        assert measured(found, values)["auc"] == area


def test_records_that_do_not_say_or_have_no_score_take_no_part():
    found = labels("x", ..., None, None, "x")
    assert found.codes.tolist() == [1, UNKNOWN, 0, 0, 1]
    told = measured(found, [1.0, -9.0, 2.0, 3.0, np.nan], [True, True, False, False, False])
    assert (told["noise"], told["sound"], told["auc"]) == ({"x": 1}, 2, 1.0)
    assert (told["removed"]["removed"], told["removed"]["precision"]) == (1, 1.0)


@pytest.mark.parametrize("names", [(..., ...), (None, None), ("x", "x")])
def test_without_noise_or_without_sound_records_there_is_nothing_to_measure(names):
    assert measured(labels(*names), [1.0, 2.0]) is None


@pytest.mark.parametrize("answer", [None, 7, "noise", {"other": 1}, ["noise"]])
def test_answers_that_are_no_labels_are_none(answer):
    found = NoiseLabels(1)
    found.add(0, {"answer": answer})
    assert found.codes.tolist() == [UNKNOWN]
