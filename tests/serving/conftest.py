# SPDX-License-Identifier: Apache-2.0
"""An exported tiny reward model, its scorer, and a client of the application."""

from __future__ import annotations

import pytest
import torch

from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models import RewardModel
from ixc_lightning.scoring import Scorer
from tests.digits import FRAMES
from tests.serving.service import Gated, serving


@pytest.fixture(scope="session")
def reward_folder(tiny_folder, tmp_path_factory):
    """An exported reward model with statistics, and its processor."""
    torch.manual_seed(3)
    model = RewardModel(str(tiny_folder))
    model.store_statistics(0.5, 2.0)
    out = tmp_path_factory.mktemp("reward") / "model"
    model.save_pretrained(out)
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def scorer(reward_folder):
    return Scorer.from_pretrained(reward_folder, video_frames=FRAMES, max_tokens=512, device="cpu")


@pytest.fixture
def gated(scorer):
    one = Gated(scorer)
    yield one
    one.gate.set()


@pytest.fixture(scope="session")
def client(scorer):
    """A client of the application as it is."""
    with serving(scorer) as one:
        yield one
