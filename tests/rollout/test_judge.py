# SPDX-License-Identifier: Apache-2.0
"""A verifier prefers what it scores higher, and says so where it cannot."""

from collections import Counter

import pytest
import torch

from ixc_lightning.rollout import ExactMatch, Format, Judge, VerifierJudge
from ixc_lightning.rollout.judge import Contest
from ixc_lightning.types import InputError
from tests.rollout.prompts import STOP, rollout_of


def _contest(scores):
    return Contest("set:0", [f"r{n}" for n in range(len(scores))], scores, None, "0", lambda: [])


def _rulings(*scores, **options):
    judge = VerifierJudge(ExactMatch(), **options)
    assert isinstance(judge, Judge)
    return list(judge.decide(_contest(list(each)) for each in scores))


def test_responses_are_scored_by_the_rule_where_there_is_an_answer():
    rollout = rollout_of([[5, STOP]] * 3, ["7", "8", None])
    assert VerifierJudge(ExactMatch()).rate(["7", "7", "7"], rollout) == [1.0, 0.0, None]


def test_a_rule_of_form_needs_no_answer():
    rollout = rollout_of([[5, STOP]] * 2, [None, None])
    assert VerifierJudge(Format(r"\d"), needs_answer=False).rate(["7", "x"], rollout) == [1.0, 0.0]


def test_right_is_preferred_to_wrong():
    (ruling,) = _rulings([1.0, 0.0, None])
    assert ruling.preferences == [(0, 1, 1.0)]
    assert (ruling.counts, ruling.left_out) == (Counter({"verified responses": 2}), Counter())


def test_prompts_that_say_nothing_are_counted_by_their_reason():
    alike, unknown = _rulings([1.0, 1.0], [None, None])
    assert alike.left_out == {"all responses score alike": 1}
    assert unknown.left_out == {"no answer to verify by": 1}
    assert alike.preferences == unknown.preferences == []


def test_a_gap_that_is_too_small_is_no_preference():
    (ruling,) = _rulings([0.4, 0.0], min_gap=0.5)
    assert ruling.preferences == []


def test_a_score_that_is_no_number_is_named():
    def broken(texts, rollout):
        return torch.full((len(texts),), float("nan"))

    with pytest.raises(InputError, match="set:0: the verifier's score is no number"):
        VerifierJudge(broken).rate(["x"], rollout_of([[5, STOP]], ["7"]))


def test_the_summary_names_the_rule_and_its_settings():
    judge = VerifierJudge(ExactMatch(r"is (\d)"))
    assert judge.summary() == {"verifier": "ExactMatch", "settings": {"pattern": r"is (\d)"}, "min_gap": 0.0}
    assert judge.fingerprint != VerifierJudge(ExactMatch(r"is (\w)")).fingerprint
    assert judge.fingerprint == VerifierJudge(ExactMatch(r"is (\d)"), min_gap=0.5).fingerprint


def test_a_negative_gap_is_refused():
    with pytest.raises(InputError, match=r"judge\.min_gap is -1"):
        VerifierJudge(ExactMatch(), min_gap=-1.0)
