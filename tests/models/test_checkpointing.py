# SPDX-License-Identifier: Apache-2.0
"""Activations that are computed again: the same gradients, and less that is kept."""

from __future__ import annotations

from collections import Counter
from inspect import signature

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ixc_lightning.functional.packing import Trees
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.checkpointing import checkpoint_activations
from ixc_lightning.types import InputError, Responses
from tests.families import KINDS, collate, run

HOWS = (1, 2, "selective")
FAMILIES = ("qwen2", "internvl", "gemma3", "internlm_xcomposer2")
RESPECTS_HOOKS = "respect_saved_tensors_hooks"


class Counts(TorchDispatchMode):
    """How often each operation is computed."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        self.of[operation.overloadpacket.__name__] += 1
        return operation(*arguments, **(settings or {}))


def gradients(backbone, batch):
    run(backbone, batch)[batch.mask].square().mean().backward()
    return {name: weight.grad for name, weight in backbone.named_parameters() if weight.grad is not None}


def kept_bytes(backbone, batch) -> int:
    """Bytes of all that the forward pass keeps for the backward pass, each storage once."""
    if RESPECTS_HOOKS in signature(checkpoint).parameters:
        for layer in backbone.decoder_layers():
            if layer.gradient_checkpointing:
                layer._gradient_checkpointing_func.keywords.setdefault(RESPECTS_HOOKS, True)
    weights = {weight.untyped_storage().data_ptr() for weight in backbone.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = run(backbone, batch)
    del states
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_bit_for_bit(tiny, family):
    it = tiny(family)
    batch = collate(it.samples(KINDS[family][:2]))
    wanted = gradients(Backbone(it.folder, freeze=()).train(), batch)
    for how in HOWS:
        found = gradients(Backbone(it.folder, freeze=(), gradient_checkpointing=how).train(), batch)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items()), how


def test_less_is_kept_the_more_is_computed_again(tiny):
    it = tiny("qwen2")
    batch = collate(it.samples())

    def kept(how):
        return kept_bytes(Backbone(it.folder, freeze=(), gradient_checkpointing=how).train(), batch)

    everything, half, some, little = (kept(how) for how in (False, 2, "selective", True))
    assert little < half < everything
    assert little < some < everything
    assert kept(1) == little


def test_a_number_leaves_the_layers_between_alone(tiny):
    layers = Backbone(tiny("qwen2").folder, weights="random", gradient_checkpointing=2).decoder_layers()
    assert [layer.gradient_checkpointing for layer in layers] == [True, False]


def test_matrix_products_and_attention_are_not_computed_again(tiny):
    it = tiny("qwen2")
    batch = collate(it.samples())

    def calls(how):
        backbone = Backbone(it.folder, freeze=(), gradient_checkpointing=how).train()
        with Counts() as counts:
            gradients(backbone, batch)
        found = counts.of
        return (
            found["mm"] + found["addmm"],
            found["_scaled_dot_product_flash_attention_for_cpu"],
            found["silu"],
        )

    (products, attention, activations), (again, again_attention, _) = calls(False), calls(True)
    assert again > products
    assert again_attention > attention
    assert calls("selective") == (products, attention, 2 * activations)


@pytest.mark.parametrize("how", [True, 2, "selective"])
def test_trees_are_computed_again_alike(tiny, how):
    it = tiny("internvl")
    prompts = collate(it.samples(["image", "text"]))
    ids = torch.randint(42, 60, (2 * len(prompts.ids), 4))
    index = torch.arange(len(prompts.ids)).repeat(2)
    trees = Trees(prompts, Responses(ids, torch.ones_like(ids).bool()), index)

    def found(**options):
        torch.manual_seed(0)
        judge = RewardModel(it.folder, freeze=(), **options).train()
        assert judge.shares
        judge(trees, judge.encode(prompts)).square().sum().backward()
        return [weight.grad for weight in judge.parameters() if weight.grad is not None]

    wanted = found()
    assert all(
        torch.equal(one, other) for one, other in zip(found(gradient_checkpointing=how), wanted, strict=True)
    )


@pytest.mark.parametrize("how", [0, -1])
def test_a_number_of_layers_must_be_positive(tiny, how):
    with pytest.raises(InputError, match=f"gradient_checkpointing is {how}, but must be"):
        Backbone(tiny("qwen2").folder, weights="random", gradient_checkpointing=how)


def test_a_network_that_cannot_says_so(tiny, monkeypatch):
    network = Backbone(tiny("qwen2").folder, weights="random").model
    monkeypatch.setattr(type(network), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="Qwen2Model cannot compute activations again"):
        checkpoint_activations(network, True)
