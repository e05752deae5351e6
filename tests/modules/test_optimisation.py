# SPDX-License-Identifier: Apache-2.0
"""What the modules share: what is optimised, the norm that is logged, and which checkpoints are taken."""

from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD

from ixc_lightning.modules import WarmupLinearLR
from ixc_lightning.modules.optimisation import check_state, gradient_norm, optimise, without_callables
from ixc_lightning.types import InputError

OPTIMIZER = partial(SGD, lr=0.1)


def _model():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    return model


def test_only_what_is_trained_is_optimised():
    model = _model()
    built = optimise(model.parameters(), OPTIMIZER, None)
    assert set(built) == {"optimizer"}
    assert built["optimizer"].param_groups[0]["params"] == list(model[1].parameters())


def test_the_schedule_is_stepped_once_per_optimiser_step():
    built = optimise(_model().parameters(), OPTIMIZER, partial(WarmupLinearLR, total_steps=4))
    assert built["lr_scheduler"]["interval"] == "step"
    assert built["lr_scheduler"]["scheduler"].optimizer is built["optimizer"]


def test_nothing_to_train_is_refused_with_what_to_change():
    with pytest.raises(InputError, match="freeze leaves nothing to train"):
        optimise(_model()[0].parameters(), OPTIMIZER, None)


def test_the_gradient_norm_is_that_of_all_gradients_together_and_skips_what_has_none():
    model = _model()
    model[1].weight.grad = torch.tensor([[3.0, 0.0, 0.0]])
    model[1].bias.grad = torch.tensor([4.0])
    assert gradient_norm(model.parameters()) == 5.0  # √(3² + 4²)


def test_a_checkpoint_of_the_same_architecture_is_taken():
    check_state(_model(), {"state_dict": _model().state_dict()})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (nn.Sequential(nn.Linear(2, 3)), "2 missing (first: 1.bias)"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)), "2 unknown (first: 2.bias)"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "2 of another shape (first: 1.bias)"),
    ],
)
def test_another_architecture_is_refused_with_what_differs(other, expected):
    with pytest.raises(InputError) as error:
        check_state(_model(), {"state_dict": other.state_dict()})
    assert expected in str(error.value)


def test_a_checkpoint_whose_weights_a_sharding_strategy_has_loaded_is_taken():
    check_state(_model(), {"global_step": 3})


def test_callables_are_left_out_of_saved_settings():
    assert without_callables({"a": 1, "optimizer": OPTIMIZER, "b": None}) == {"a": 1, "b": None}


@pytest.fixture
def mesh():
    """A mesh of one rank."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_an_optimiser_that_cannot_step_sharded_weights_is_refused_and_one_that_can_is_not(mesh):
    from bitsandbytes.optim import AdamW8bit as PlainWeights
    from torchao.optim import AdamW8bit as AnyWeights

    model = nn.Linear(4, 4)
    optimise(model.parameters(), PlainWeights, None)
    fully_shard(model, mesh=mesh)
    with pytest.raises(
        InputError, match=r"bitsandbytes.*AdamW8bit cannot step weights that are sharded.*torchao"
    ):
        optimise(model.parameters(), PlainWeights, None)
    optimise(model.parameters(), AnyWeights, None)
