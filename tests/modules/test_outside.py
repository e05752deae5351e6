# SPDX-License-Identifier: Apache-2.0
"""The algorithm that docs/rl.md writes in one file trains as printed, and silence is trained on as well."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from ixc_lightning.modules import PPOModule
from ixc_lightning.rollout import stack_rollout
from ixc_lightning.types import Responses
from tests.digits import trainer
from tests.modules.experiences import experience
from tests.modules.policies import on_policy, prompt_data

DOCS = Path(__file__).parents[2] / "docs/rl.md"
SAME = 1e-6  # float32 against float64


class Silent:
    """Ends every answer with its first token."""

    def generate(self, policy, batch, visuals, sampling, *, seed):
        ids = torch.full((sampling.n * len(batch.keys), 1), sampling.stop_tokens[0])
        ended = torch.ones(len(ids), dtype=torch.bool)
        return stack_rollout(batch, Responses(ids, ended[:, None]), ended)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The class that the page prints, from a file of its own."""
    section = DOCS.read_text().split("## Your own algorithm, in one file")[1]
    path = tmp_path_factory.mktemp("outside") / "my_file.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1])
    spec = spec_from_file_location("my_file", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DrGRPO


def test_the_printed_algorithm_centres_scores_in_their_groups_and_divides_by_nothing(printed, tiny_folder):
    found = on_policy(printed, tiny_folder).advantages(experience()).advantages
    assert found[0].tolist() == pytest.approx([1.5] * 3, abs=SAME)  # scores 2 and −1
    assert found[2].tolist() == pytest.approx([-1.5] * 3, abs=SAME)
    assert printed.aggregation == "sequence_sum"


@pytest.mark.filterwarnings("ignore:Attribute .* removed from hparams because it cannot be pickled")
def test_the_printed_algorithm_trains(printed, digits, tiny_folder, tmp_path):
    module = on_policy(printed, tiny_folder)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(module, prompt_data(digits, tiny_folder))
    assert run.global_step == 1
    assert run.logged_metrics["train/first_ratio"] == pytest.approx(1, abs=1e-5)


def test_answers_that_are_all_empty_are_trained_on_and_counted(digits, tiny_folder, tmp_path):
    module = on_policy(PPOModule, tiny_folder, engine=Silent())
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(module, prompt_data(digits, tiny_folder))
    assert run.logged_metrics["train/length"] == run.logged_metrics["train/ended"] == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())
