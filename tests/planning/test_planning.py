# SPDX-License-Identifier: Apache-2.0
"""What is planned for a network, beside what the real one takes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig

from ixc_lightning.models import Backbone, LoRA
from ixc_lightning.planning import Work, cache_bytes, cost_of, optimiser_bytes, weight_bytes
from tests.family_configs import BUILDERS, TEXT

pytestmark = pytest.mark.slow
KEPT_LEAST, KEPT_MOST = 0.85, 1.15  # small tables of positions weigh much here; grouped keys are spread out
LENGTH = 48


def _llama():
    return LlamaConfig(vocab_size=300, **{**TEXT, "num_hidden_layers": 6})


CONFIGS = {
    "llama": _llama,
    **{
        name: lambda name=name: BUILDERS[name]()[0]
        for name in ("qwen2_5_vl", "internvl", "internlm_xcomposer2")
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    CONFIGS[request.param]().save_pretrained(path)
    return str(path)


def real(folder, **options):
    return Backbone(folder, weights="random", head=True, **options).train()


def planned(folder, **options):
    def build():
        with torch.device("meta"):
            return Backbone(folder, weights="random", head=True, **options)

    return build


def run(backbone, rows):
    """Hidden states, as the rehearsal computes them."""
    ids = torch.zeros(rows, LENGTH, dtype=torch.long)
    mask = torch.ones_like(ids, dtype=torch.bool)
    inputs = {"position_ids": backbone.family.positions(backbone.base, ids, mask, {}, {})}
    if "InternLM" in type(backbone.base).__name__:
        inputs["image_mask"] = mask
    embedded = backbone.base.get_input_embeddings()(ids)
    return backbone.base(inputs_embeds=embedded, use_cache=False, **inputs).last_hidden_state


def saved_bytes(backbone, rows):
    """Bytes that a forward pass keeps for the backward pass, weights excluded."""
    weights = {weight.untyped_storage().data_ptr() for weight in backbone.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = run(backbone, rows)
    kept[hidden.untyped_storage().data_ptr()] = hidden.untyped_storage()
    return sum(storage.nbytes() for storage in kept.values())


def test_weights_are_those_of_the_real_network(folder):
    backbone = real(folder)
    buffers = sum(buffer.nbytes for buffer in backbone.buffers())
    assert weight_bytes([planned(folder)()]) == sum(w.nbytes for w in backbone.parameters()) + buffers


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_activations_are_those_that_a_real_pass_keeps(folder, rows, checkpointing):
    options = {"gradient_checkpointing": checkpointing}
    cost = cost_of(planned(folder, **options), Work(rows, LENGTH))
    found = saved_bytes(real(folder, **options), rows)
    assert KEPT_LEAST * found < cost.kept < KEPT_MOST * found


def test_recomputation_keeps_less_and_computes_more(folder):
    kept, again = (
        cost_of(planned(folder, gradient_checkpointing=how), Work(2, LENGTH)) for how in (False, True)
    )
    assert again.kept < kept.kept / 2
    assert again.flops > 1.1 * kept.flops
    assert again.peak < kept.peak


def test_arithmetic_is_that_of_the_real_pass(folder):
    backbone = real(folder)
    with FlopCounterMode(display=False) as counter:
        run(backbone, 2).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "scaled_dot_product" in str(name))
    cost = cost_of(planned(folder), Work(2, LENGTH))
    assert cost.flops == counter.get_total_flops() - attention
    assert 2 * cost.attention == attention


def test_layers_that_are_not_rehearsed_cost_as_those_that_are(tmp_path):
    sizes = []
    for layers in (4, 9):  # four are rehearsed as they are
        config = _llama()
        config.num_hidden_layers = layers
        config.save_pretrained(tmp_path / str(layers))
        sizes.append(cost_of(planned(str(tmp_path / str(layers))), Work(1, LENGTH)))
    nine = saved_bytes(real(str(tmp_path / "9")), 1)
    assert KEPT_LEAST * nine < sizes[1].kept < KEPT_MOST * nine
    assert sizes[1].flops > 2 * sizes[0].flops


def test_gradients_that_are_given_away_take_no_room(tmp_path):
    _llama().save_pretrained(tmp_path)
    costs = [cost_of(planned(str(tmp_path)), Work(1, 8, is_sharded=away)) for away in (False, True)]
    trained = sum(w.nbytes for w in planned(str(tmp_path))().parameters() if w.requires_grad)
    assert costs[0].peak > trained / 2 > costs[1].peak


def test_a_frozen_base_with_adapters_keeps_more_than_its_peak_of_inference(tmp_path):
    _llama().save_pretrained(tmp_path)
    build = planned(str(tmp_path), adapter=LoRA(rank=4), quantisation="nf4")
    learns, reads = (cost_of(build, Work(2, LENGTH, learns=learns)) for learns in (True, False))
    assert reads.peak < learns.kept < learns.peak
    assert reads.flops < learns.flops


OPTIMISERS = {
    "AdamW": torch.optim.AdamW,
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "plain": lambda weights: torch.optim.SGD(weights, lr=0.1),
}


def state_bytes(built):
    states = [value for state in built.state.values() for value in state.values()]
    return sum(state.nbytes for state in states if isinstance(state, torch.Tensor))


@pytest.mark.parametrize("optimizer", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_of_an_optimiser_are_those_behind_a_real_step(optimizer, dtype):
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(7, 5), (300,), (64, 128)]]
    built = optimizer(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    built.step()
    assert optimiser_bytes(optimizer, weights) == state_bytes(built)


def test_states_of_8_bits_are_those_of_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(7, 5), (64, 128), (4096,), (5000,)]]
    built = bnb.optim.AdamW8bit(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    built.step()
    states = [value for state in built.state.values() for name, value in state.items() if "qmap" not in name]
    real_bytes = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    assert (
        optimiser_bytes(bnb.optim.AdamW8bit, weights) == real_bytes
    )  # the tables of codes serve all weights


def test_weights_in_4_bits_take_what_bitsandbytes_stores(tmp_path):
    pytest.importorskip("bitsandbytes")
    _llama().save_pretrained(tmp_path)
    backbone = Backbone(str(tmp_path), weights="random", quantisation="nf4")
    tensors = [*backbone.parameters(), *backbone.buffers()]
    for module in backbone.modules():
        if state := getattr(module, "quant_state", None):
            nested = state.state2
            tensors += [state.absmax, state.code, state.offset, nested.absmax, nested.code]
    with torch.device("meta"):
        planned_bytes = weight_bytes([Backbone(str(tmp_path), weights="random", quantisation="nf4")])
    assert planned_bytes == sum(tensor.nbytes for tensor in tensors)


def test_keys_and_values_are_those_of_a_real_cache(tmp_path):
    config = _llama()
    config.save_pretrained(tmp_path)
    backbone, cache = real(str(tmp_path)), DynamicCache()
    backbone.model(torch.zeros(3, 11, dtype=torch.long), past_key_values=cache, use_cache=True)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(config, tokens=33, dtype=torch.float32) == stored
