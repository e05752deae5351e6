# SPDX-License-Identifier: Apache-2.0
"""Filters keep what their rule says, see no media, and say how many records they left out."""

import logging

import pytest

from ixc_lightning.datamodules.filters import Filter, LengthRatio
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.types import InputError
from tests.datamodules.samples import PLACE, instruction, message, pair
from tests.digits import PAIRS, preference_data


class OnlyText(Filter):
    """Keeps the records without pictures."""

    def keep(self, record, encoder):
        return record.modality == "text"


class Nothing(Filter):
    """Keeps no record."""

    def keep(self, record, encoder):
        return False


class Seen(Filter):
    """Keeps every record and remembers it."""

    def __init__(self):
        self.records = []

    def keep(self, record, encoder):
        self.records.append(record)
        return True


@pytest.fixture(scope="module")
def encoder(tiny_folder):
    return ChatEncoder(str(tiny_folder))


def sized(chosen, rejected):
    """A pair whose responses have so many tokens: for the tiny tokenizer every digit is one."""
    return pair(
        chosen=(message("assistant", "1" * chosen),), rejected=(message("assistant", "2" * rejected),)
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "kept"),
    [
        (6, 3, True),  # the ratio is the limit
        (7, 3, False),
        (1, 3, True),  # a short chosen response is never the fault
        (3, 3, True),
    ],
)
def test_a_pair_stays_up_to_the_limit(chosen, rejected, kept, encoder):
    assert LengthRatio(limit=2.0).keep(sized(chosen, rejected), encoder) == kept


@pytest.mark.parametrize(("chosen", "kept"), [(4, True), (5, False)])
def test_a_difference_within_the_slack_always_stays(chosen, kept, encoder):
    assert LengthRatio(limit=2.0, slack=3).keep(sized(chosen, 1), encoder) == kept


def test_a_limit_of_one_keeps_pairs_of_equal_length(encoder):
    assert LengthRatio(limit=1.0).keep(sized(5, 5), encoder)
    assert not LengthRatio(limit=1.0).keep(sized(6, 5), encoder)


@pytest.mark.parametrize("limit", [0.99, 0.0, -1.0, float("nan")])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(InputError, match=r"LengthRatio.limit is .*, but must be at least 1"):
        LengthRatio(limit=limit)


def test_a_length_ratio_of_records_that_are_no_pairs_is_refused(encoder):
    with pytest.raises(InputError, match=f"{PLACE}: LengthRatio compares pairs"):
        LengthRatio(limit=2.0).keep(instruction(), encoder)


def test_a_filter_sees_every_training_record_and_no_media(digits, tiny_folder):
    seen = Seen()
    preference_data(digits, tiny_folder, filters=[seen]).setup("fit")
    assert len({record.key for record in seen.records}) == PAIRS
    assert any(record.modality == "video" for record in seen.records)
    assert all(not record.media for record in seen.records)


def test_the_drops_of_each_filter_are_counted_and_said(digits, tiny_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    data = preference_data(digits, tiny_folder, filters=[OnlyText(), Seen()])
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    kept = len(data.dataset("train"))
    assert 0 < kept < PAIRS
    assert data.dropped == {"OnlyText": PAIRS - kept, "Seen": 0}
    assert f"OnlyText dropped {PAIRS - kept} of {PAIRS} training records" in caplog.text
    assert f"Seen dropped 0 of {kept} training records" in caplog.text


def test_two_filters_of_one_class_are_counted_together(digits, tiny_folder):
    data = preference_data(digits, tiny_folder, filters=[LengthRatio(2.0), LengthRatio(1.0)])
    data.setup("fit")
    assert data.dropped == {"LengthRatio": PAIRS - len(data.dataset("train"))}


def test_filters_that_leave_nothing_are_an_error_that_names_them(digits, tiny_folder):
    data = preference_data(digits, tiny_folder, filters=[Seen(), Nothing()])
    with pytest.raises(InputError, match=r"Seen, Nothing dropped every training record: loosen data.filters"):
        data.setup("fit")
