# SPDX-License-Identifier: Apache-2.0
"""A prompt that is read once for all its responses gives the scores and gradients of one read for each."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ixc_lightning.functional.packing import Trees, pack
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.models.families import Family
from ixc_lightning.models.packing import read_trees, share
from ixc_lightning.models.shared_attention import NAME
from ixc_lightning.types import Prompts, Responses
from tests.families import KINDS, collate, sample
from tests.family_configs import TEXT

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
GRADIENT_TOLERANCE = 1e-5  # relative to the largest entry of the tensor
GRADIENT_FLOOR = 2e-3  # gradients that are all smaller are rounding: a key's bias changes no softmax
BF16_TOLERANCE = 0.1
REWARD_TOKEN = 41
POOLINGS = ("mean", "last", "token")
CASES = [(name, kind) for name in KINDS for kind in (*KINDS[name], "mixed")]


@pytest.fixture(scope="module")
def judges(tiny):
    models = {}

    def build(name, **options):
        key = name, *options.items()
        if key not in models:
            torch.manual_seed(1)
            models[key] = RewardModel(tiny(name).folder, reward_token_id=REWARD_TOKEN, freeze=(), **options)
            assert models[key].shares
        return models[key].eval()

    return build


def responses(lengths, side="left", seed=3):
    """Responses of ordinary tokens, each with the reward token at its end, padded on a side."""
    generator, width = torch.Generator().manual_seed(seed), max(lengths)
    index = torch.arange(width)[None]
    ends = torch.tensor(lengths)[:, None]
    mask = index < ends if side == "right" else index >= width - ends
    ids = torch.randint(42, 60, mask.shape, generator=generator)
    last = index == (ends - 1 if side == "right" else width - 1)
    return Responses(ids.masked_fill(last, REWARD_TOKEN) * mask, mask)


def grown(samples, side="left"):
    """Trees of one to three branches, of one token or more, given in turn; the prompts are the samples."""
    index = [tree for turn in range(3) for tree in range(len(samples)) if tree % 3 >= turn]
    lengths = [1 + (3 * row + 2) % 5 for row in range(len(index))]
    return Trees(collate(samples, side=side), responses(lengths, side), torch.tensor(index))


def scores_of(judge, trees, *, shares):
    """The scores under every pooling."""
    found = []
    judge.shares = shares
    for pooling in POOLINGS:
        judge.pooling = pooling
        found.append(judge(trees, judge.encode(trees.prompts)))
    judge.pooling, judge.shares = "mean", True
    return torch.stack(found)


def gradients_of(judge, trees, *, shares):
    """Gradients of a loss that weighs every score, and every pooling, differently."""
    judge.zero_grad()
    scores = scores_of(judge, trees, shares=shares)
    scores.mul(torch.linspace(-1, 2, scores.numel()).view_as(scores)).mean().backward()
    return {name: weight.grad.clone() for name, weight in judge.named_parameters() if weight.grad is not None}


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        size = max(GRADIENT_FLOOR, gradient.abs().max().item())
        assert (found[name] - gradient).abs().max() <= GRADIENT_TOLERANCE * size, name


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_and_gradients_are_those_of_separate_sequences(name, kind, tiny, judges):
    it, judge = tiny(name), judges(name)
    samples = it.samples() if kind == "mixed" else [sample(it.processor, kind, seed=seed) for seed in (1, 2)]
    trees = grown(samples, "left" if kind == "mixed" else "right")
    apart, together = (scores_of(judge, trees, shares=shares).detach() for shares in (False, True))
    torch.testing.assert_close(together, apart, atol=SCORE_TOLERANCE, rtol=0)
    if kind == "mixed":
        apart, together = (gradients_of(judge, trees, shares=shares) for shares in (False, True))
        assert_same_gradients(together, apart)


tokens = st.integers(1, 7)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=4), st.data()
)
def test_trees_of_any_shape_score_as_sequences_do(judges, shape, data):
    index = [tree for tree, (_, branches) in enumerate(shape) for _ in branches]
    lengths = [length for _, branches in shape for length in branches]
    order = data.draw(st.permutations(range(len(index))))
    side = data.draw(st.sampled_from(["left", "right"]))
    prompts = Prompts(*responses([length for length, _ in shape], side, seed=5), {}, {})
    trees = Trees(
        prompts, responses([lengths[row] for row in order], side), torch.tensor([index[row] for row in order])
    )
    with torch.no_grad():
        apart, together = (scores_of(judges("qwen2"), trees, shares=shares) for shares in (False, True))
    torch.testing.assert_close(together, apart, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["internvl", "gemma3"])
def test_gradients_are_the_same_where_activations_are_computed_again(name, tiny, judges):
    trees = grown(tiny(name).samples(["image", "text"]))
    plain, again = judges(name), judges(name, gradient_checkpointing=True).train()
    again.load_state_dict(plain.state_dict())
    wanted = gradients_of(plain, trees, shares=False)
    calls = []
    hook = again.backbone.decoder_layers()[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = gradients_of(again, trees, shares=True)
    hook.remove()
    assert_same_gradients(found, wanted)
    assert len(calls) == 2 * len(POOLINGS)


def test_no_prompt_is_read_twice(tiny, judges):
    judge, trees = judges("internvl"), grown(tiny("internvl").samples(["image", "text", "images"]))
    rows = []
    hook = judge.backbone.decoder_layers()[0].register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0])
    )
    judge(trees, judge.encode(trees.prompts))
    hook.remove()
    assert [row.shape[:2] for row in rows] == [
        (1, int(trees.prompts.mask.sum() + trees.responses.mask.sum()))
    ]


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_sequences_score_bit_for_bit_as_without_sharing(name, tiny, judges):
    plain = RewardModel(tiny(name).folder, sharing="off").eval()
    plain.load_state_dict(judges(name).state_dict())
    assert not plain.shares
    assert plain.backbone.config.get_text_config()._attn_implementation == "sdpa"
    trees = grown(tiny(name).samples())
    with torch.no_grad():
        found = (judge(trees, judge.encode(trees.prompts)) for judge in (plain, judges(name)))
        apart = scores_of(judges(name), trees, shares=False)[0]
    assert torch.equal(next(found), apart)
    torch.testing.assert_close(next(found), apart, atol=SCORE_TOLERANCE, rtol=0)


def test_windows_count_along_the_own_branch(tmp_path):
    config = MistralConfig(vocab_size=100, sliding_window=4, **TEXT)
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    judge = RewardModel(str(tmp_path), weights="random", reward_token_id=REWARD_TOKEN).eval()
    prompts = Prompts(*responses([9, 2], seed=5), {}, {})
    trees = Trees(prompts, responses([3, 7, 5]), torch.tensor([0, 1, 0]))
    assert judge.shares
    with torch.no_grad():
        apart, together = (scores_of(judge, trees, shares=shares) for shares in (False, True))
    torch.testing.assert_close(together, apart, atol=SCORE_TOLERANCE, rtol=0)


def test_a_bfloat16_backbone_shares(tiny):
    judge = RewardModel(tiny("internvl").folder, dtype="bfloat16", reward_token_id=REWARD_TOKEN).eval()
    assert judge.shares
    trees = grown(tiny("internvl").samples(["image", "text"]))
    with torch.no_grad():
        apart, together = (scores_of(judge, trees, shares=shares) for shares in (False, True))
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, apart, atol=BF16_TOLERANCE, rtol=0)


def test_a_saved_model_says_nothing_of_how_it_attended(judges, tmp_path):
    judges("internvl").save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


def test_the_last_token_of_a_tree_must_be_the_reward_token(tiny, judges):
    judge, trees = judges("qwen2"), grown(tiny("qwen2").samples())
    judge.pooling = "last"
    ids = trees.responses.ids.clone()
    ids[1, -1] = REWARD_TOKEN + 1
    with pytest.raises(ValueError, match="does not end with the reward token 41"):
        judge(trees._replace(responses=trees.responses._replace(ids=ids)), None)
    judge.pooling = "mean"


def test_another_attention_shares_nothing_and_says_so(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        judge = RewardModel(tiny("qwen2").folder, attention="eager")
    assert not judge.shares
    assert "attention is eager" in caplog.text


def test_a_network_that_loses_the_plan_is_found_out(tiny, monkeypatch):
    def careless(*arguments, shared_prefix=None, **kwargs):
        return sdpa_attention_forward(*arguments, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, careless)
    backbone = Backbone(tiny("qwen2").folder)
    assert "gives other states than sequences apart" in share(backbone)
    assert backbone.config._attn_implementation == "sdpa"


def test_a_network_that_fails_on_a_row_of_trees_shares_nothing(tiny, monkeypatch):
    backbone = Backbone(tiny("qwen2").folder)
    forward = type(backbone.base).forward

    def strict(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        return forward(self, input_ids, attention_mask, position_ids, use_cache=use_cache)

    monkeypatch.setattr(type(backbone.base), "forward", strict)
    assert "Qwen2Model cannot read a row of trees" in share(backbone)


def test_a_model_with_several_end_tokens_shares(tiny):
    backbone = Backbone(tiny("qwen2").folder)
    backbone.config.eos_token_id = [1, 2]
    assert share(backbone) is None


def test_a_backbone_that_was_not_prepared_reads_no_trees(tiny):
    trees = grown(tiny("qwen2").samples())
    with pytest.raises(ValueError, match=r"call share\(backbone\) first"):
        read_trees(Backbone(tiny("qwen2").folder), trees, pack(trees), None)


def test_layers_that_are_no_attention_share_nothing(tiny):
    backbone = Backbone(tiny("qwen2").folder)
    backbone.config.layer_types = ["linear_attention", "full_attention"]
    assert share(backbone) == "Qwen2Model has layers of linear_attention"


def test_pictures_whose_tokens_may_see_each_other_need_a_family_that_knows(tiny):
    backbone = Backbone(tiny("gemma3").folder)
    backbone.family = Family()
    assert "may see each other in Gemma3Model" in share(backbone)
