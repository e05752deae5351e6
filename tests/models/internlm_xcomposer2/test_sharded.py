# SPDX-License-Identifier: Apache-2.0
"""Two ranks, one with text and one with pictures, train the model as one process does."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.models.test_sharding import _assert_same, _run

LOSS_TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task", ["reward", "sft"])
def test_a_rank_without_pictures_reduces_what_the_other_does(task, tiny, digits, tmp_path):
    options = {"task": task, "data": str(digits), "model": tiny("internlm_xcomposer2").folder}
    one, single = _run(tmp_path, world=1, **options)
    two, sharded = _run(tmp_path, world=2, **options)
    assert sharded["text_only_ranks"] == [True, False]
    assert sharded["losses"] == pytest.approx(single["losses"], abs=LOSS_TOLERANCE)
    weights = [load_file(folder / "export" / "model.safetensors") for folder in (one, two)]
    _assert_same(*weights)
    assert [name for name in sharded["sharded"] if ".plora." in name]
