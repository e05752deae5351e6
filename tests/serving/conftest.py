# SPDX-License-Identifier: Apache-2.0
"""An exported tiny reward model, its scorer, and a client of the application."""

from __future__ import annotations

import pytest

from ixc_lightning.scoring import Scorer
from tests.digits import FRAMES
from tests.serving.service import Gated, serving


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
