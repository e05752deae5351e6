# SPDX-License-Identifier: Apache-2.0
"""Attention and Liger by choice: what is missing is named, and what was chosen is used."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models import kernels as module
from ixc_lightning.models.critic import Critic
from ixc_lightning.models.kernels import check_attention, guard_attention, use_liger
from ixc_lightning.types import InputError
from tests.families import assert_close, collate, run

# transformers 5.23 on torch 2.15 (2026-11)
old_flag = pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
LIGER = "liger_kernel.transformers.monkey_patch"


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without a GPU, with no more packages than those named; libraries are never asked."""

    def pretend(*, gpu: bool, packages: tuple[str, ...] = ()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(module, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(module, "is_kernels_available", lambda: "kernels" in packages)

    return pretend


@pytest.fixture
def liger(monkeypatch):
    """A stand-in of Liger's own surface that knows Qwen2, and notes what it was asked to change."""
    calls = []
    library = ModuleType(LIGER)
    library.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2": object()}
    library._apply_liger_kernel_to_instance = lambda model, **settings: calls.append((model, settings))
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, LIGER, library)
    return SimpleNamespace(calls=calls, library=library)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_without_a_gpu_says_so(machine, attention, tiny):
    machine(gpu=False, packages=("flash_attn", "flash_attn_interface"))
    with pytest.raises(InputError, match=f"attention: {attention} needs a CUDA GPU.*use attention: sdpa"):
        Backbone(tiny("qwen2").folder, attention=attention)


@pytest.mark.parametrize(
    ("attention", "package", "line"),
    [
        ("flash_attention_2", "flash_attn", "pip install flash-attn --no-build-isolation"),
        ("flash_attention_3", "flash_attn_interface", "pip install flash-attn-3"),
    ],
)
def test_a_missing_package_is_named_with_what_to_type(machine, attention, package, line):
    machine(gpu=True)
    with pytest.raises(InputError, match=f"needs the package {package}: {line}, or use attention: sdpa"):
        check_attention(attention)
    for there in (package, "kernels"):
        machine(gpu=True, packages=(there,))
        check_attention(attention)


def test_no_gpu_is_needed_where_nothing_is_computed(machine):
    machine(gpu=False, packages=("flash_attn",))
    with torch.device("meta"):
        check_attention("flash_attention_2")


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "another"])
def test_other_attention_needs_nothing(machine, attention):
    machine(gpu=False)
    check_attention(attention)


@pytest.fixture
def guarded():
    """A layer that stands for a decoder's first one, with the guard of flash attention."""
    layer = nn.Identity()
    guard_attention(layer, "flash_attention_2")
    return layer


def test_flash_attention_takes_half_precision_alone(guarded):
    states = torch.zeros(1, 2, 4, device="meta")
    for dtype in (torch.bfloat16, torch.float16):
        assert guarded(states.to(dtype)).dtype == dtype
    with pytest.raises(InputError, match=r"the states are torch.float32: give trainer.precision bf16-mixed"):
        guarded(states)


def test_flash_attention_does_not_run_on_the_cpu(guarded):
    with pytest.raises(InputError, match="the model is on the CPU: use attention: sdpa"):
        guarded(torch.zeros(1, 2, 4, dtype=torch.bfloat16))


def test_flex_attention_cannot_learn_on_the_cpu():
    layer, states = nn.Linear(4, 4), torch.zeros(1, 2, 4)
    guard_attention(layer, "flex_attention")
    with torch.no_grad():
        layer(states)
    with pytest.raises(InputError, match="no backward pass on the CPU: use attention: sdpa to train"):
        layer(states)
    layer.requires_grad_(False)
    layer(states)


@old_flag
@pytest.mark.slow
@pytest.mark.long
def test_flex_attention_gives_the_states_of_sdpa(tiny):
    it = tiny("qwen2")
    batch = collate(it.samples())
    with torch.no_grad():
        states = run(Backbone(it.folder, attention="flex_attention").eval(), batch)
        assert_close(states[batch.mask], run(it.backbone, batch)[batch.mask])


def test_liger_changes_the_network_but_for_its_losses(machine, liger, tiny):
    network = tiny("qwen2").plain
    machine(gpu=True, packages=("liger_kernel",))
    use_liger(network)
    assert liger.calls == [(network, {"cross_entropy": False, "fused_linear_cross_entropy": False})]


def test_a_backbone_uses_liger_if_it_is_asked_for(monkeypatch, tiny):
    networks = []
    monkeypatch.setattr("ixc_lightning.models.backbone.use_liger", networks.append)
    Backbone(tiny("qwen2").folder, weights="random")
    asked = Backbone(tiny("qwen2").folder, weights="random", liger=True)
    assert networks == [asked.model]


@pytest.mark.parametrize(
    ("gpu", "packages", "message"),
    [
        (False, ("liger_kernel",), "liger: true needs a CUDA GPU"),
        (True, (), "needs the package liger_kernel: pip install liger-kernel"),
    ],
)
def test_what_liger_lacks_is_named(machine, tiny, gpu, packages, message):
    machine(gpu=gpu, packages=packages)
    with pytest.raises(InputError, match=message):
        use_liger(tiny("qwen2").plain)


def test_a_network_that_liger_does_not_know_is_refused(machine, liger, tiny):
    machine(gpu=True, packages=("liger_kernel",))
    with pytest.raises(InputError, match="no kernels for InternVLForConditionalGeneration"):
        use_liger(tiny("internvl").plain)
    assert not liger.calls


def test_a_part_that_liger_cannot_change_is_refused(machine, liger, tiny):
    def refuse(model, **settings):
        raise TypeError("Unsupported model")

    liger.library._apply_liger_kernel_to_instance = refuse
    machine(gpu=True, packages=("liger_kernel",))
    with pytest.raises(InputError, match="cannot change a Qwen2ForCausalLM: Unsupported model"):
        use_liger(tiny("qwen2").plain)


@pytest.mark.parametrize("role", [Backbone, RewardModel, Critic])
def test_every_role_takes_the_choices(monkeypatch, tiny, role):
    networks = []
    monkeypatch.setattr("ixc_lightning.models.backbone.use_liger", networks.append)
    options = {"gradient_checkpointing": 2, "compile": "aot_eager", "liger": True}
    sharing = {"sharing": "off"} if role is RewardModel else {}
    made = role(tiny("qwen2").folder, weights="random", attention="eager", **options, **sharing)
    backbone = made if role is Backbone else made.backbone
    assert networks == [backbone.model]
    assert [layer.gradient_checkpointing for layer in backbone.decoder_layers()] == [True, False]
    plain = type(tiny("qwen2").backbone.decoder_layers()[0])
    assert all(type(layer) is not plain and isinstance(layer, plain) for layer in backbone.decoder_layers())
    assert backbone.config.get_text_config()._attn_implementation == "eager"
