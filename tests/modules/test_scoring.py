# SPDX-License-Identifier: Apache-2.0
"""Entries of scores are of real records alone; what they are worth end to end is in tests/callbacks."""

from functools import partial

import pytest
import torch

from ixc_lightning.models import RewardModel
from ixc_lightning.modules import ScoringModule
from ixc_lightning.types import CandidateBatch, InputError, Prompts, Responses
from tests.modules.policies import same_judge


class Alone:
    """A trainer of one rank, as far as scoring asks it."""

    strategy = property(lambda self: self)

    def reduce(self, tensor, reduce_op):
        return tensor


@pytest.fixture
def module(tiny_folder, monkeypatch):
    module = ScoringModule(partial(same_judge, str(tiny_folder)), rows_at_once=2)
    monkeypatch.setattr(ScoringModule, "trainer", Alone())
    monkeypatch.setattr(ScoringModule, "device_mesh", None)
    module.configure_model()
    return module


def _batch(real):
    ids = torch.randint(40, 60, (2, 4))
    said = torch.randint(40, 60, (3, 3))
    mask = torch.ones_like(said, dtype=torch.bool)
    mask[1, 2] = False
    return CandidateBatch(
        Prompts(ids, torch.ones_like(ids, dtype=torch.bool), {}, {}),
        Responses(said * mask, mask),
        torch.tensor([0, 1, 1]),
        ["0", "0", "1"],
        ["d", "e"],
        torch.zeros(2, dtype=torch.long),
        ["k", "l"],
        ["s", "s"],
        [5, 3],
        torch.tensor(real),
        [(4, "bad", "s", "because")],
    )


@torch.no_grad()
def test_entries_hold_each_real_record_with_its_responses_and_the_bad_ones_with_their_reason(module):
    entries = module.predict_step(_batch([True, True]), 0)
    assert [entry["row"] for entry in entries] == [3, 4, 5]
    assert entries[1] == {"row": 4, "shard": "s", "key": "bad", "error": "because"}
    assert [(one["name"], one["tokens"]) for one in entries[0]["responses"]] == [("0", 2), ("1", 3)]
    assert (entries[2]["key"], entries[2]["domain"], entries[2]["modality"]) == ("k", "d", "text")


@torch.no_grad()
def test_a_record_that_fills_a_batch_has_no_entry(module):
    assert [entry["row"] for entry in module.predict_step(_batch([False, True]), 0)] == [3, 4]


def test_the_fingerprint_tells_models_apart(module, tiny_folder):
    before = module.fingerprint()
    assert module.fingerprint() == before
    module.model.store_statistics(0.0, 2.0)
    assert module.fingerprint() != before


def test_a_forward_pass_holds_at_least_one_response(tiny_folder):
    with pytest.raises(InputError, match="rows_at_once is 0"):
        ScoringModule(partial(RewardModel, str(tiny_folder)), rows_at_once=0)
