# SPDX-License-Identifier: Apache-2.0
"""Rates are counts of real samples and tokens over the time that training took."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch

from ixc_lightning.callbacks import Throughput, throughput
from ixc_lightning.types import InstructionBatch, PreferenceBatch, Prompts, Responses
from tests.rollout.prompts import of_prompts


class Run:
    """A trainer and a module whose clock moves only when it is told to."""

    def __init__(self, monkeypatch, *, every=2, world=1):
        self.now, self.logged = 100.0, {}
        self.trainer = Mock(spec=L.Trainer, world_size=world, global_step=0)
        self.trainer.log_every_n_steps = every
        self.module = Mock(spec=L.LightningModule, log=self.log)
        self.callback = Throughput()
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        self.callback.on_train_start(self.trainer, self.module)

    def log(self, name, value, **_):
        self.logged[name] = value

    def batch(self, batch, seconds, *, wait=0.0, steps=1, outputs=None):
        self.now += wait
        self.callback.on_train_batch_start(self.trainer, self.module, batch, 0)
        self.now += seconds
        self.trainer.global_step += steps
        self.callback.on_train_batch_end(self.trainer, self.module, outputs, batch, 0)

    def validate(self, seconds):
        self.callback.on_validation_start(self.trainer, self.module)
        self.now += seconds


def _rows(*lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return mask.long(), mask


def _pairs():
    """Two pairs of 5 + 3 prompt tokens, 2 + 1 chosen and 1 + 4 rejected ones: 16 in all."""
    ids = torch.zeros(2, dtype=torch.long)
    prompts = Prompts(*_rows(5, 3), {}, {})
    responses = Responses(*_rows(2, 1)), Responses(*_rows(1, 4))
    return PreferenceBatch(prompts, *responses, torch.zeros(2), ids, ids, ["a", "b"], ids == 0, 0, [])


def test_rates_are_counts_over_seconds_with_each_prompt_counted_once(monkeypatch):
    run = Run(monkeypatch)
    run.batch(_pairs(), 1.0)
    assert not run.logged
    run.batch(_pairs(), 3.0)
    assert run.logged["train/pairs_per_second"] == 4 / 4.0
    assert run.logged["train/tokens_per_second"] == 32 / 4.0


def test_padding_is_the_empty_share_of_both_padded_sequences_of_each_pair(monkeypatch):
    run = Run(monkeypatch)
    run.batch(_pairs(), 1.0)
    run.batch(_pairs(), 1.0)
    # sequences of 5 + 2, 3 + 1, 5 + 1 and 3 + 4 tokens in rows of 7
    assert run.logged["train/padding"] == (28 - 24) / 28
    assert run.logged["train/tokens_per_step"] == 16


def test_a_row_that_only_fills_the_batch_up_is_no_token_of_the_step(monkeypatch):
    run = Run(monkeypatch, every=1)
    run.batch(_pairs()._replace(real=torch.tensor([True, False])), 1.0)
    assert run.logged["train/tokens_per_step"] == 5 + 2 + 1


def test_instructions_count_as_samples(monkeypatch):
    run, ids = Run(monkeypatch, every=1), torch.zeros(1, dtype=torch.long)
    prompts, responses = Prompts(*_rows(4), {}, {}), Responses(*_rows(2))
    batch = InstructionBatch(prompts, responses, ids, ids, ["a"], ids == 0, 0, [])
    run.batch(batch, 2.0)
    rates = {"train/samples_per_second": 0.5, "train/tokens_per_second": 3.0}
    assert run.logged == rates | {"train/tokens_per_step": 6.0, "train/padding": 0.0}


def test_prompts_count_with_the_tokens_that_the_policy_read_and_said(monkeypatch):
    run = Run(monkeypatch, every=1)
    batch = of_prompts(Prompts(*_rows(4, 2), {}, {}))
    run.batch(batch._replace(real=torch.tensor([True, False])), 2.0, outputs={"tokens": torch.tensor(50)})
    assert run.logged == {"train/prompts_per_second": 0.5, "train/tokens_per_second": 25.0}


def test_waiting_for_the_next_batch_counts(monkeypatch):
    run = Run(monkeypatch)
    run.batch(_pairs(), 1.0)
    run.batch(_pairs(), 1.0, wait=2.0)
    assert run.logged["train/pairs_per_second"] == 4 / 4.0


def test_validation_within_a_window_does_not_count(monkeypatch):
    run = Run(monkeypatch)
    run.batch(_pairs(), 1.0)
    run.validate(50.0)
    run.batch(_pairs(), 1.0)
    assert run.logged["train/pairs_per_second"] == 4 / 2.0


def test_every_window_starts_afresh(monkeypatch):
    run = Run(monkeypatch, every=1)
    run.batch(_pairs(), 1.0)
    run.batch(_pairs(), 4.0)
    assert run.logged["train/pairs_per_second"] == 2 / 4.0


@pytest.mark.parametrize("world", [1, 4])
def test_all_ranks_count(monkeypatch, world):
    run = Run(monkeypatch, every=1, world=world)
    run.batch(_pairs(), 1.0)
    assert run.logged["train/pairs_per_second"] == 2 * world


def test_batches_that_accumulate_towards_a_step_are_one_window(monkeypatch):
    run = Run(monkeypatch, every=1)
    run.batch(_pairs(), 1.0, steps=0)
    assert not run.logged
    run.batch(_pairs(), 1.0, steps=1)
    assert run.logged["train/pairs_per_second"] == 4 / 2.0
