# SPDX-License-Identifier: Apache-2.0
"""Generation: what is drawn is drawn from the policy's own distribution, whatever the batch looks like."""

import logging
import weakref
from contextlib import contextmanager

import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import GenerationConfig, MistralConfig

from ixc_lightning.functional.masking import join, last_index
from ixc_lightning.functional.sampling import draw, uniforms
from ixc_lightning.models import Backbone
from ixc_lightning.models.growth import grows
from ixc_lightning.models.prefix import Prefix
from ixc_lightning.models.visuals import picture_token_ids
from ixc_lightning.rollout import Sampling, TransformersEngine
from ixc_lightning.rollout.decoding import LEAVING
from ixc_lightning.types import InputError, Prompts, Responses
from tests.families import KINDS
from tests.family_configs import TEXT
from tests.rollout.prompts import of_prompts, prompt_batch

LENGTH = 4
TEMPERATURE = 0.7
GREEDY = Sampling(max_tokens=LENGTH, min_tokens=LENGTH, greedy=True)
MANY_STOPS = tuple(range(40, 120))  # more than a quarter of the vocabulary of a random model
FAMILIES = tuple(KINDS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def policy(tiny):
    policies = {}

    def build(name):
        if name not in policies:
            policies[name] = Backbone(tiny(name).folder, head=True).eval()
        return policies[name]

    return build


def answer(policy, batch, sampling, seed=0, visuals=None):
    if visuals is None:
        visuals = policy.encode(batch.prompts)
    return TransformersEngine().generate(policy, batch, visuals, sampling, seed=seed)


@torch.no_grad()
def by_full_forwards(policy, batch, sampling, draw):
    """The tokens that ``draw`` picks from the logits of forward passes without a cache, padding with 0."""
    rows = sampling.n * len(batch.keys)
    visuals = policy.encode(batch.prompts)
    visuals = None if visuals is None else visuals.repeat(sampling.n)
    prompts = batch.prompts._replace(
        ids=batch.prompts.ids.repeat(sampling.n, 1),
        mask=batch.prompts.mask.repeat(sampling.n, 1),
        token_types={name: types.repeat(sampling.n, 1) for name, types in batch.prompts.token_types.items()},
    )
    stops = torch.tensor([policy.model.generation_config.eos_token_id, *sampling.stop_tokens])
    pictures = list(picture_token_ids(policy.config).values())
    said = torch.zeros(rows, 0, dtype=torch.long)
    ended = torch.zeros(rows, dtype=torch.bool)
    while said.shape[1] < sampling.max_tokens and not ended.all():
        sequences = join(prompts, Responses(said, torch.ones_like(said).bool()))
        hidden = policy(sequences.ids, sequences.mask, sequences.token_types, visuals)
        logits = policy.logits(hidden[torch.arange(rows), last_index(sequences.mask)])
        logits[:, pictures] = -torch.inf
        if said.shape[1] < sampling.min_tokens:
            logits[:, stops] = -torch.inf
        tokens = draw(logits).masked_fill(ended, 0)
        said = torch.cat([said, tokens[:, None]], dim=1)
        ended |= torch.isin(tokens, stops)
    return said


@every_family
def test_greedy_tokens_equal_those_of_full_forward_passes_without_a_cache(family, tiny, policy):
    batch = prompt_batch(tiny(family).samples())
    expected = by_full_forwards(policy(family), batch, GREEDY, lambda logits: logits.argmax(-1))
    assert answer(policy(family), batch, GREEDY).responses.ids.tolist() == expected.tolist()


@every_family
def test_a_prompt_is_answered_in_a_batch_as_it_is_alone(family, tiny, policy):
    samples = tiny(family).samples()
    together = answer(policy(family), prompt_batch(samples), GREEDY).responses.ids
    for row, sample in zip(together, samples, strict=True):
        alone = answer(policy(family), prompt_batch([sample]), GREEDY)
        assert alone.responses.ids[0].tolist() == row.tolist()


@every_family
def test_padding_on_either_side_changes_nothing(family, tiny, policy):
    samples = tiny(family).samples()
    expected = answer(policy(family), prompt_batch(samples, side="right"), GREEDY)
    for side in ("left", "right"):
        padded = answer(policy(family), prompt_batch(samples, side=side, extra=3), GREEDY)
        assert torch.equal(padded.responses.ids, expected.responses.ids)


@every_family
def test_samples_are_drawn_from_the_distribution_of_full_forward_passes(family, tiny, policy):
    """The same noise must pick the same tokens, row for row, also when other rows have ended."""
    sampling = Sampling(n=2, temperature=TEMPERATURE, max_tokens=LENGTH, stop_tokens=MANY_STOPS)
    batch = prompt_batch(tiny(family).samples())
    rollout = answer(policy(family), batch, sampling, seed=3)
    assert policy(family).grows
    places = iter(uniforms(sampling.n * len(batch.keys), LENGTH, seed=3).unbind(1))
    expected = by_full_forwards(
        policy(family), batch, sampling, lambda logits: draw(logits / TEMPERATURE, next(places))
    )
    assert len(set(rollout.lengths.tolist())) > 1
    assert rollout.responses.ids.tolist() == expected.tolist()


@every_family
def test_a_prompt_that_is_read_for_each_sample_has_the_same_answers(family, tiny, policy):
    """Prompts of other lengths beside each other, and rows that leave when they have ended."""
    batch = prompt_batch(tiny(family).samples(), side="right")
    visuals = policy(family).encode(batch.prompts)
    for sampling in (
        Sampling(n=3, max_tokens=9, temperature=TEMPERATURE, stop_tokens=MANY_STOPS),
        Sampling(n=2, max_tokens=5, min_tokens=2, top_k=9, top_p=0.8, stop_tokens=MANY_STOPS),
        GREEDY,
    ):
        shared, apart = (
            TransformersEngine(sharing=sharing).generate(policy(family), batch, visuals, sampling, seed=5)
            for sharing in ("auto", "off")
        )
        assert torch.equal(shared.responses.ids, apart.responses.ids)
        assert torch.equal(shared.responses.mask, apart.responses.mask)


def test_a_prompt_is_read_once_for_its_samples_and_rows_leave_when_they_have_ended(tiny, policy):
    one, batch = policy("internvl"), prompt_batch(tiny("internvl").samples())
    visuals, sampling = one.encode(batch.prompts), Sampling(n=4, max_tokens=8, stop_tokens=MANY_STOPS)
    assert TransformersEngine().generate(one, batch, visuals, GREEDY, seed=0).ended is not None  # prepares
    shapes = []
    hook = one.decoder_layers()[0].register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    rollout = TransformersEngine().generate(one, batch, visuals, sampling, seed=0)
    hook.remove()
    prompts, *steps = [shape[:2] for shape in shapes]
    assert prompts == (len(batch.keys), batch.prompts.mask.sum(dim=1).max())
    assert all(length == 1 for _, length in steps)
    for place, (asked, _) in enumerate(steps):
        needed = int((rollout.lengths > place + 1).sum())
        assert needed <= asked < needed / (1 - LEAVING)
    assert steps[-1][0] < len(rollout.lengths) / 2


@pytest.mark.parametrize("rows", [1, 3, None])
def test_a_row_s_draws_are_its_own_however_many_are_written_at_a_time(rows, tiny, policy):
    batch = prompt_batch(tiny("qwen3_vl").samples())
    visuals = policy("qwen3_vl").encode(batch.prompts)
    sampling = Sampling(n=3, max_tokens=6, stop_tokens=MANY_STOPS)
    wanted = answer(policy("qwen3_vl"), batch, sampling, seed=2, visuals=visuals)
    found = TransformersEngine(max_rows=rows).generate(policy("qwen3_vl"), batch, visuals, sampling, seed=2)
    assert torch.equal(found.responses.ids, wanted.responses.ids)


def test_a_policy_that_cannot_share_says_why_and_answers(tiny, policy, caplog):
    batch, sampling = prompt_batch(tiny("qwen2").samples()), Sampling(n=2, max_tokens=LENGTH)
    one = Backbone(tiny("qwen2").folder, head=True, attention="eager").eval()
    with caplog.at_level(logging.WARNING):
        found = answer(one, batch, sampling)
    assert "a prompt is read for each of its samples: attention is eager" in caplog.text
    assert one.grows is False
    assert torch.equal(found.responses.ids, answer(policy("qwen2"), batch, sampling).responses.ids)


def test_a_network_that_grows_wrong_is_found_out(tiny, monkeypatch):
    """What a row sees of its prompt must be looked at, not assumed."""

    def blind(self, length, window):
        return torch.zeros_like(self.mask)[:, None, None]

    monkeypatch.setattr(Prefix, "_ahead", blind)
    one = Backbone(tiny("qwen2").folder, head=True).eval()
    assert "a response that grows gives other states than sequences apart" in grows(one)
    monkeypatch.undo()
    assert grows(one) is None


def test_windows_count_along_the_own_row(tmp_path):
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=100, sliding_window=4, **TEXT)
    config.save_pretrained(tmp_path)
    one = Backbone(str(tmp_path), weights="random", head=True).eval()
    mask = torch.arange(9) < torch.tensor([[9], [2]])
    batch = of_prompts(Prompts(torch.randint(5, 99, mask.shape) * mask, mask, {}, {}))
    sampling = Sampling(n=3, max_tokens=9, stop_tokens=(7,))
    shared, apart = (
        TransformersEngine(sharing=sharing).generate(one, batch, None, sampling, seed=1)
        for sharing in ("auto", "off")
    )
    assert one.grows
    assert torch.equal(shared.responses.ids, apart.responses.ids)


def test_what_the_models_own_generation_config_says_about_drawing_is_not_heard(tiny, policy):
    batch, sampling = prompt_batch(tiny("qwen2").samples()), Sampling(n=8, max_tokens=LENGTH)
    one = policy("qwen2")
    expected = answer(one, batch, sampling).responses.ids
    hostile = {
        "do_sample": True,
        "top_k": 2,
        "top_p": 0.1,
        "min_p": 0.3,
        "typical_p": 0.2,
        "temperature": 9.0,
    }
    hostile |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 2}
    own = one.model.generation_config
    one.model.generation_config = GenerationConfig(eos_token_id=1, suppress_tokens=[5], **hostile)
    try:
        found = answer(one, batch, sampling).responses.ids
        assert one.model.generation_config.top_k == 2  # and it is given back
    finally:
        one.model.generation_config = own
    assert torch.equal(found, expected)


def test_more_than_fifty_tokens_are_drawn_from(tiny, policy):
    """Transformers leaves all but fifty out unless told otherwise."""
    batch = prompt_batch(tiny("qwen2").samples(["text"])[:1])
    rollout = answer(policy("qwen2"), batch, Sampling(n=400, temperature=50.0, max_tokens=1))
    assert len(set(rollout.responses.ids.flatten().tolist())) > 100


@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_filter_that_leaves_one_token_is_greedy(rule, tiny, policy):
    batch = prompt_batch(tiny("internvl").samples())
    filtered = Sampling(max_tokens=LENGTH, min_tokens=LENGTH, **rule)
    assert torch.equal(
        answer(policy("internvl"), batch, filtered).responses.ids,
        answer(policy("internvl"), batch, GREEDY).responses.ids,
    )


@pytest.mark.parametrize("family", ["internvl", "qwen2"])
def test_responses_are_padded_behind_their_first_stop_token(family, tiny, policy):
    sampling = Sampling(n=9, max_tokens=6, stop_tokens=MANY_STOPS)
    rollout = answer(policy(family), prompt_batch(tiny(family).samples()), sampling)
    stops = {1, *MANY_STOPS}
    for ids, mask, ended in zip(rollout.responses.ids, rollout.responses.mask, rollout.ended, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [True] * length + [False] * (len(mask) - length)
        assert not ids[length:].any()
        assert [token in stops for token in ids[:length].tolist()] == [False] * (length - 1) + [bool(ended)]
        assert ended or length == 6
    assert rollout.ended.any()
    assert not rollout.ended.all()
    assert rollout.lengths.tolist() == rollout.responses.mask.sum(1).tolist()


def test_a_stop_token_must_wait_for_the_fewest_tokens(tiny, policy):
    batch = prompt_batch(tiny("internvl").samples())
    rollout = answer(
        policy("internvl"), batch, Sampling(n=4, min_tokens=2, max_tokens=8, stop_tokens=MANY_STOPS)
    )
    assert rollout.lengths.min() == 3  # two tokens and the stop token


def test_responses_that_say_nothing_are_told(tiny, policy):
    batch = prompt_batch(tiny("qwen2").samples())
    vocabulary = policy("qwen2").config.vocab_size
    rollout = answer(policy("qwen2"), batch, Sampling(max_tokens=3, stop_tokens=tuple(range(vocabulary))))
    assert rollout.ended.all()
    assert rollout.empty.all()
    long = answer(policy("qwen2"), batch, Sampling(max_tokens=3, min_tokens=1, stop_tokens=MANY_STOPS))
    assert not long.empty.any()


def test_a_length_limit_of_one_that_cuts_a_response_does_not_make_it_empty(tiny, policy):
    rollout = answer(policy("qwen2"), prompt_batch(tiny("qwen2").samples()), Sampling(max_tokens=1, n=3))
    assert rollout.empty.tolist() == rollout.ended.tolist()
    assert not rollout.empty.all()


def test_a_seed_fixes_the_draw_and_another_one_changes_it(tiny, policy):
    batch, sampling = prompt_batch(tiny("internvl").samples()), Sampling(max_tokens=LENGTH)
    first, again, other = (answer(policy("internvl"), batch, sampling, seed) for seed in (5, 5, 6))
    assert torch.equal(first.responses.ids, again.responses.ids)
    assert not torch.equal(first.responses.ids, other.responses.ids)


def test_samples_of_one_prompt_differ(tiny, policy):
    batch = prompt_batch(tiny("internvl").samples(["image"])[:1])
    rollout = answer(policy("internvl"), batch, Sampling(n=4, max_tokens=LENGTH))
    assert len({tuple(row) for row in rollout.responses.ids.tolist()}) == 4


def test_the_callers_random_state_is_left_alone(tiny, policy):
    before = torch.get_rng_state()
    answer(policy("qwen2"), prompt_batch(tiny("qwen2").samples()), Sampling(max_tokens=2), seed=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_are_stacked_sample_after_sample(tiny, policy):
    samples = tiny("internvl").samples(["image", "text"])
    batch = prompt_batch(samples, answers=["a", None, "c", 4])
    batch.real[3] = False
    rollout = answer(policy("internvl"), batch, Sampling(n=2, max_tokens=2))
    assert rollout.prompt_index.tolist() == [0, 1, 2, 3] * 2
    assert rollout.keys == [f"set:{row}" for row in range(4)] * 2
    assert rollout.answers == ["a", None, "c", 4] * 2
    assert rollout.has_answer.tolist() == [True, False, True, True] * 2
    assert rollout.real.tolist() == [True, True, True, False] * 2
    assert rollout.domain.tolist() == batch.domain.tolist() * 2
    assert torch.equal(rollout.prompts.ids, batch.prompts.ids.repeat(2, 1))
    assert rollout.prompts.media is batch.prompts.media


def test_a_rollout_can_be_read_again_with_the_same_pictures(tiny, policy):
    """Prompts, responses and stacked pictures fit together: greedy tokens are the likeliest ones."""
    one, batch = policy("qwen3_vl"), prompt_batch(tiny("qwen3_vl").samples())
    visuals = one.encode(batch.prompts)
    rollout = answer(one, batch, GREEDY, visuals=visuals)
    sequences = join(rollout.prompts, rollout.responses)
    with torch.no_grad():
        hidden = one(sequences.ids, sequences.mask, sequences.token_types, visuals)
        logits = one.logits(hidden)
    logits[..., [1, *picture_token_ids(one.config).values()]] = -torch.inf
    said = sequences.ids[sequences.response_mask]
    assert torch.equal(logits.argmax(-1)[sequences.response_mask.roll(-1, 1)], said)


@every_family
def test_a_few_rows_at_a_time_are_answered_as_all_at_once(family, tiny, policy):
    batch = prompt_batch(tiny(family).samples())
    visuals = policy(family).encode(batch.prompts)
    engine = TransformersEngine(max_rows=3)
    found = engine.generate(policy(family), batch, visuals, GREEDY, seed=0)
    assert torch.equal(found.responses.ids, answer(policy(family), batch, GREEDY).responses.ids)
    sampling = Sampling(n=3, max_tokens=6, stop_tokens=MANY_STOPS)
    sampled = engine.generate(policy(family), batch, visuals, sampling, seed=0)
    assert sampled.responses.ids.shape[0] == 3 * len(batch.keys)
    assert (sampled.ended | (sampled.lengths == 6)).all()
    assert len({tuple(row) for row in sampled.responses.ids[:: len(batch.keys)].tolist()}) > 1


def test_no_rows_at_a_time_are_refused():
    with pytest.raises(InputError, match="max_rows is 0, but must be at least 1, or null"):
        TransformersEngine(0)


@every_family
def test_a_text_batch_is_answered_the_same_after_a_picture_batch(family, tiny, policy):
    text, mixed = prompt_batch(tiny(family).samples(["text"])), prompt_batch(tiny(family).samples())
    before = answer(policy(family), text, GREEDY).responses.ids
    answer(policy(family), mixed, GREEDY)
    assert torch.equal(answer(policy(family), text, GREEDY).responses.ids, before)


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_picture_tokens_are_never_drawn(tiny, policy):
    """Nothing could be put in their place when the response is read again."""
    one = policy("qwen2_5_vl")
    pictures = list(picture_token_ids(one.config).values())
    assert len(pictures) == 2

    def prefer_pictures(_, __, logits):
        logits[..., pictures] += 1e4

    with hooked(one.model.get_output_embeddings(), prefer_pictures):
        rollout = answer(one, prompt_batch(tiny("qwen2_5_vl").samples()), Sampling(max_tokens=6, n=2))
    assert not torch.isin(rollout.responses.ids, torch.tensor(pictures)).any()


def test_logits_are_made_for_one_token_at_a_time_and_not_kept(tiny, policy):
    made, alive = [], []

    def watch(_, __, logits):
        made.append(weakref.ref(logits))
        alive.append(sum(one() is not None for one in made))
        assert logits.shape[1] == 1

    with hooked(policy("internvl").model.get_output_embeddings(), watch):
        answer(
            policy("internvl"),
            prompt_batch(tiny("internvl").samples()),
            Sampling(max_tokens=12, min_tokens=12),
        )
    assert len(made) == 12
    assert max(alive) <= 2


@pytest.mark.parametrize("training", [True, False])
def test_a_policy_in_training_answers_without_dropout_or_graph_and_goes_on_training(training, tiny):
    """Gradient checkpointing, which turns the cache off in training mode, is no obstacle either."""
    one = Backbone(tiny("internvl").folder, head=True, gradient_checkpointing=True)
    for module in one.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    plain = Backbone(tiny("internvl").folder, head=True).eval()
    batch = prompt_batch(tiny("internvl").samples())
    one.train(training)
    rollout = answer(one, batch, GREEDY)
    assert one.training is training
    assert not rollout.responses.ids.requires_grad
    assert torch.equal(rollout.responses.ids, answer(plain, batch, GREEDY).responses.ids)


def test_a_prompt_without_room_for_a_response_is_named(tiny, policy):
    batch = prompt_batch(tiny("qwen2").samples())
    longest = int(batch.prompts.mask.sum(1).argmax())
    message = rf"set:{longest}: \d+ prompt tokens and 1024 of a response .* 1024 positions .* sampling.max"
    with pytest.raises(InputError, match=message):
        answer(policy("qwen2"), batch, Sampling(max_tokens=1024))


def test_a_response_may_use_every_position(tiny, policy):
    """Up to the last position there is room, one token more and there is none."""
    one, batch = policy("qwen2"), prompt_batch(tiny("qwen2").samples(["text"])[:1])
    free = one.config.max_position_embeddings - int(batch.prompts.mask.sum())
    stops = tuple(range(one.config.vocab_size))
    assert len(answer(one, batch, Sampling(max_tokens=free, stop_tokens=stops)).keys) == 1
    with pytest.raises(InputError, match="positions of the model"):
        answer(one, batch, Sampling(max_tokens=free + 1, stop_tokens=stops))


def test_a_policy_without_any_stop_token_is_refused(tiny):
    one = Backbone(tiny("qwen2").folder, head=True).eval()
    one.model.generation_config.eos_token_id = one.config.eos_token_id = None
    batch = prompt_batch(tiny("qwen2").samples())
    with pytest.raises(InputError, match=r"no stop token is known.*sampling.stop_tokens"):
        answer(one, batch, Sampling(max_tokens=2))
    assert len(answer(one, batch, Sampling(max_tokens=2, stop_tokens=(7,))).keys) == len(batch.keys)


def test_a_list_of_stop_tokens_in_the_models_config_is_heard(tiny):
    one = Backbone(tiny("qwen2").folder, head=True).eval()
    one.model.generation_config.eos_token_id = list(range(one.config.vocab_size))
    assert answer(one, prompt_batch(tiny("qwen2").samples()), Sampling(max_tokens=4)).empty.all()


def test_a_policy_without_language_head_is_refused(tiny):
    one, batch = tiny("internvl").backbone, prompt_batch(tiny("internvl").samples())
    with pytest.raises(InputError, match="head=True"):
        answer(one, batch, Sampling(max_tokens=2, stop_tokens=(1,)))


def test_a_recipe_can_name_every_rule():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampling", type=Sampling)
    parsed = parser.parse_args(["--sampling.n=4", "--sampling.stop_tokens=[3, 4]", "--sampling.top_p=0.5"])
    rules = parser.instantiate(parsed).sampling
    assert rules == Sampling(n=4, stop_tokens=(3, 4), top_p=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "sampling.n is 0, but must be at least 1"),
        ({"temperature": 0.0}, "sampling.temperature is 0.0, but must be positive"),
        ({"temperature": float("nan")}, "sampling.temperature is nan"),
        ({"top_p": 1.5}, "sampling.top_p is 1.5"),
        ({"top_k": -1}, "sampling.top_k is -1"),
        ({"max_tokens": 0}, "sampling.max_tokens is 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "sampling.min_tokens is 9, but must be from 0 to max_tokens"),
        ({"greedy": True, "n": 2}, "greedy samples of one prompt are all equal: set n to 1"),
    ],
)
def test_a_rule_out_of_its_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_the_smallest_batch_is_one_row_of_one_token(tiny, policy):
    sample = tiny("qwen2").samples(["text"])[0]
    prompts = prompt_batch([sample]).prompts
    smallest = prompts._replace(ids=prompts.ids[:, -1:], mask=prompts.mask[:, -1:])
    assert answer(policy("qwen2"), of_prompts(smallest), GREEDY).responses.ids.shape == (1, LENGTH)
