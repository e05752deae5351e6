# SPDX-License-Identifier: Apache-2.0
"""What is removed by each limit, by hand; bad records take no part."""

import numpy as np
import pytest

from ixc_lightning.datamodules.cleaning_verdicts import Limits, ScoreTable, judge
from ixc_lightning.types import InputError

TOLERANCE = 1e-12  # float64, a few operations
SCORES = [1.0, 2.0, 3.0, 4.0, -100.0, 50.0, 51.0, 52.0]
DOMAINS = ["a"] * 5 + ["b"] * 3


def row(number, score, domain="a", modality="text", response="response", error=None):
    return {
        "row": number,
        "domain": domain,
        "modality": modality,
        "response": response,
        "score": score,
        "error": error,
    }


def bad(number):
    return row(number, None, None, None, None, "it is broken")


def table():
    rows = [row(number, *pair) for number, pair in enumerate(zip(SCORES, DOMAINS, strict=True))]
    return ScoreTable.read([*rows, bad(8)], 9)


def each(names):
    return [names.names[code] for code in names.codes]


def removed(**limits):
    return np.flatnonzero(judge(table(), Limits(**limits)).removed).tolist()


def test_the_table_holds_a_number_a_domain_and_a_modality_for_each_record():
    found = table()
    assert found.score[:8].tolist() == SCORES
    assert np.isnan(found.score[8])
    assert found.is_bad.tolist() == [False] * 8 + [True]
    assert each(found.domains)[:8] == DOMAINS
    assert (found.value_name, found.value is found.score) == ("score", True)


def test_with_answers_of_others_the_value_is_the_contrast():
    rows = [row(0, 4.0), row(0, 1.0, response="other 1"), row(0, 2.0, response="other 2"), bad(1)]
    found = ScoreTable.read([*rows, row(2, -1.0), row(2, 7.0, response="other 1")], 3)
    assert found.value_name == "contrast"
    assert found.score[[0, 2]].tolist() == [4.0, -1.0]
    assert found.value[[0, 2]].tolist() == [4.0 - 1.5, -8.0]
    assert np.isnan(found.value[1])


def test_a_threshold_removes_what_is_below_it():
    assert removed(threshold=3.0) == [0, 1, 4]
    assert removed(threshold=-100.0) == []


def test_a_quantile_removes_the_lowest_share_of_what_could_be_scored():
    assert removed(quantile=0.25) == [0, 4]
    assert removed(quantile=0.12) == []


def test_a_z_score_is_taken_within_the_domain():
    # domain a: median 2, MAD 1; domain b: median 51, MAD 1; over all, 1 lies lower than 50
    z = judge(table(), Limits(z_score=-1.0)).z_score
    expected = [(x - 2) / 1.482602218505602 for x in SCORES[:5]] + [
        -0.6744897501960817,
        0,
        0.6744897501960817,
    ]
    assert z[:8].tolist() == pytest.approx(expected, abs=TOLERANCE)
    assert np.isnan(z[8])
    assert removed(z_score=-1.0) == [4]
    assert removed(z_score=-0.5) == [0, 4, 5]
    assert removed(z_score=-0.9, per=()) == [4]


def test_groups_may_be_of_domain_and_modality():
    rows = [row(n, float(n), "ab"[n % 2], ("text", "image")[n // 4]) for n in range(8)]
    verdicts = judge(ScoreTable.read(rows, 8), Limits(z_score=-9.0, per=("domain", "modality")))
    assert set(each(verdicts.group)) == {"a, text", "b, text", "a, image", "b, image"}
    assert each(verdicts.group)[5] == "b, image"
    # pairs 0 2, 1 3, 4 6, 5 7: each is as far from the middle of its own group
    assert abs(verdicts.z_score).tolist() == pytest.approx([0.6744897501960817] * 8, abs=TOLERANCE)


def test_limits_add_up_and_every_one_that_is_crossed_is_a_reason():
    found = table()
    verdicts = judge(found, Limits(threshold=2.5, quantile=0.25, z_score=-0.5))
    assert np.flatnonzero(verdicts.removed).tolist() == [0, 1, 4, 5]
    assert verdicts.reasons(4, found) == [
        "score -100 is below 2.5",
        "score -100 is among the lowest 0.25 of all",
        "robust z-score -68.8 in a is below -0.5",
    ]
    assert verdicts.reasons(1, found) == ["score 2 is below 2.5"]
    assert verdicts.reasons(3, found) == []


def test_bad_records_are_neither_kept_nor_removed():
    verdicts = judge(table(), Limits(threshold=1e9))
    assert verdicts.removed.tolist() == [True] * 8 + [False]
    assert not verdicts.kept.any()
    assert judge(ScoreTable.read([bad(0)], 1), Limits(z_score=-3.0)).kept.tolist() == [False]


def test_the_ranking_is_by_z_score_only_if_that_is_a_limit():
    found = table()
    for limits, name in ((Limits(z_score=-3.0, quantile=0.1), "z_score"), (Limits(quantile=0.1), "score")):
        verdicts = judge(found, limits)
        assert verdicts.ranked_by(found) == name
        expected = verdicts.z_score if name == "z_score" else found.score
        np.testing.assert_array_equal(verdicts.ranking(found), expected)


def test_a_table_that_lacks_a_record_is_refused():
    with pytest.raises(InputError, match="lacks record 1 of 3"):
        ScoreTable.read([row(0, 1.0), row(2, 1.0)], 3)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "no limit is given"),
        ({"per": ("domain",)}, "no limit is given"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"z_score": float("-inf")}, "z_score is -inf"),
        ({"quantile": 0.0}, "quantile is 0.0"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"z_score": -3.0, "per": ("source",)}, "name domain, modality, or both"),
    ],
)
def test_limits_that_are_none_are_refused(limits, message):
    with pytest.raises(InputError, match=message):
        Limits(**limits).check()
