# SPDX-License-Identifier: Apache-2.0
"""Compiled layers: the states and gradients of plain ones, and few compilations whatever the lengths."""

from __future__ import annotations

import json
import shutil

import jaxtyping
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import GenerationConfig

from ixc_lightning.functional.packing import Trees
from ixc_lightning.models import Backbone, LoRA, RewardModel
from ixc_lightning.models.adapters import activate, adapter_weights
from ixc_lightning.models.compiling import compile_layers
from ixc_lightning.types import InputError, Prompts, Responses
from tests.families import KINDS, assert_close, collate, run, sample
from tests.models import sharded_compiled

BACKEND = "aot_eager"  # traces, and differentiates, as inductor does, in a tenth of the time
TOLERANCE = 1e-5  # float32, sums in another order
SIZES = ((2, 9), (4, 33), (5, 50), (2, 64), (7, 8), (6, 31), (3, 100), (2, 17), (4, 70))

# torch's tracer looks at the gradient of every input, layers' states included (torch 2.15, 2026-11)
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)


def words(rows, length, *, seed=0):
    """A batch of text whose first row is shorter than the others."""
    ids = torch.randint(42, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids).bool()
    mask[0, : length // 2] = False
    return Prompts(ids * mask, mask, {}, {})


def learn(network, states):
    """Gradients of a loss that reads every state."""
    network.zero_grad()
    states.square().mean().backward()
    pairs = network.named_parameters()
    return {name: weight.grad.clone() for name, weight in pairs if weight.grad is not None}


def compiled_and_plain(folder, **options):
    plain = Backbone(folder, freeze=(), **options).train()
    compiled = Backbone(folder, freeze=(), compile=BACKEND, **options).train()
    compiled.load_state_dict(plain.state_dict())
    return compiled, plain


def assert_same_learning(compiled, plain, batch):
    states, wanted = (run(network, batch)[batch.mask] for network in (compiled, plain))
    assert_close(states, wanted, TOLERANCE)
    found, wanted = learn(compiled, states), learn(plain, wanted)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(found[name], gradient, TOLERANCE * max(1.0, gradient.abs().max().item()))


@pytest.fixture
def graphs():
    """The number of graphs that were compiled, and of places where one had to end, since the test began."""
    torch._dynamo.reset()
    counters.clear()
    return lambda: (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))


def test_batches_of_any_size_are_one_compilation(tiny, graphs):
    compiled, plain = compiled_and_plain(tiny("qwen2").folder)
    for seed, (rows, length) in enumerate(SIZES):
        assert_same_learning(compiled, plain, words(rows, length, seed=seed))
        assert graphs() == (1, 0)


@pytest.mark.slow
def test_a_single_row_is_one_compilation_more(tiny, graphs):
    compiled, plain = compiled_and_plain(tiny("qwen2").folder)
    for rows, length in ((2, 9), (1, 12), (1, 30), (3, 5), (1, 7)):
        assert_same_learning(compiled, plain, words(rows, length))
    assert graphs() == (2, 0)


@pytest.mark.slow
def test_layers_of_one_kind_share_what_is_compiled(tiny, graphs):
    backbones = [compiled_and_plain(tiny("qwen2").folder)[0] for _ in range(2)]
    for backbone in backbones:
        run(backbone, words(2, 9))
    assert graphs() == (1, 0)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family", KINDS)
def test_every_family_learns_as_without(tiny, family):
    it = tiny(family)
    compiled, plain = compiled_and_plain(it.folder)
    for kinds in ([KINDS[family][-1], "text"], ["text", "text"]):
        assert_same_learning(compiled, plain, collate(it.samples(kinds)))


@pytest.mark.slow
@pytest.mark.parametrize("how", [True, 2])
def test_activations_are_computed_again_around_it(tiny, how, graphs):
    compiled, plain = compiled_and_plain(tiny("qwen2").folder, gradient_checkpointing=how)
    for rows, length in SIZES[:4]:
        assert_same_learning(compiled, plain, words(rows, length))
    assert graphs()[0] <= 2
    assert [layer.gradient_checkpointing for layer in compiled.decoder_layers()] == [True, how is True]


def test_a_choice_among_operations_is_refused(tiny):
    with pytest.raises(InputError, match="with compile give true, a number, or false"):
        Backbone(tiny("qwen2").folder, weights="random", gradient_checkpointing="selective", compile=True)


@pytest.fixture
def unchecked():
    """Without the checks of shapes that tests put around every function: they would be compiled as well."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_trees_of_any_shape_need_no_compilation(tiny, graphs):
    it = tiny("qwen2")
    plain, compiled = (RewardModel(it.folder, freeze=(), compile=how).train() for how in (False, BACKEND))
    compiled.load_state_dict(plain.state_dict())
    assert compiled.shares
    counts = []
    for seed, rows in enumerate((2, 3, 5, 4)):
        prompts = collate([sample(it.processor, "text", seed=seed + row) for row in range(rows)])
        ids = torch.randint(42, 60, (2 * rows, 3 + seed))
        trees = Trees(prompts, Responses(ids, torch.ones_like(ids).bool()), torch.arange(rows).repeat(2))
        scores, wanted = (judge(trees, None) for judge in (compiled, plain))
        assert_close(scores, wanted, TOLERANCE)
        found, wanted = learn(compiled, scores), learn(plain, wanted)
        for name, gradient in wanted.items():
            assert_close(found[name], gradient, TOLERANCE * max(1.0, gradient.abs().max().item()))
        counts.append(graphs()[0])
    assert counts == counts[:1] * 4


def test_the_state_has_the_names_of_a_plain_one(tiny, tmp_path):
    compiled, plain = compiled_and_plain(tiny("qwen2").folder, head=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [type(layer).__name__ for layer in compiled.decoder_layers()] == ["Qwen2DecoderLayer"] * 2
    compiled.save_pretrained(tmp_path)
    again = Backbone(str(tmp_path), head=True)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in again.state_dict().items())


def test_generation_compiles_nothing(tiny, graphs):
    compiled, plain = compiled_and_plain(tiny("qwen2").folder, head=True)
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    batch = words(3, 9)
    with torch.no_grad():
        tokens, wanted = (network.eval().generate(batch, None, settings) for network in (compiled, plain))
    assert torch.equal(tokens, wanted)
    assert graphs() == (0, 0)


@pytest.mark.slow
def test_adapters_that_are_switched_are_noticed(tiny):
    torch.manual_seed(0)
    compiled = Backbone(tiny("qwen2").folder, adapter=LoRA(rank=2), compile=BACKEND).eval()
    for name, weight in adapter_weights(compiled.base, "default").items():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight)
    plain = Backbone(tiny("qwen2").folder, adapter=LoRA(rank=2)).eval()
    plain.load_state_dict(compiled.state_dict())
    batch = words(2, 9)
    with torch.no_grad():
        for name in ("default", None, "default"):
            for network in (compiled, plain):
                activate(network.base, name)
            assert_close(run(compiled, batch)[batch.mask], run(plain, batch)[batch.mask], TOLERANCE)


def test_without_a_compiler_the_message_says_what_to_do(tiny, monkeypatch):
    layers = Backbone(tiny("qwen2").folder, weights="random").decoder_layers()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "some-c++")
    with pytest.raises(InputError, match=r"there is no some-c\+\+: install it"):
        compile_layers(layers, True)
    compile_layers(layers, BACKEND)


@pytest.mark.slow
def test_kernels_of_inductor_learn_as_without(tiny):
    plain = Backbone(tiny("qwen2").folder, freeze=()).train()
    compiled = Backbone(tiny("qwen2").folder, freeze=(), compile=True).train()
    for rows, length in SIZES[:3]:
        assert_same_learning(compiled, plain, words(rows, length))


@pytest.mark.slow
def test_compiled_layers_are_sharded_and_computed_again(tiny, tmp_path):
    arguments = (tiny("qwen2").folder, str(tmp_path))
    torch.multiprocessing.spawn(sharded_compiled.learn, arguments, nprocs=sharded_compiled.WORLD)
    result = json.loads((tmp_path / "result.json").read_text())
    for plain, compiled in result["losses"]:
        assert compiled == pytest.approx(plain, rel=TOLERANCE)
    assert result["apart"] <= TOLERANCE
    assert result["graphs"] == 1
    assert result["again"] == 2 * len(sharded_compiled.SIZES)
    assert result["same_names"]
