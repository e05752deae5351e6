# SPDX-License-Identifier: Apache-2.0
"""A score depends on its own prompt, pictures and response, and on nothing else, in every family."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.models.reward_model import SETTINGS_FILE
from ixc_lightning.types import InputError, Responses
from tests.families import KINDS, collate

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
FAMILIES = list(KINDS)


@pytest.fixture(scope="module")
def reward_model(tiny):
    models = {}

    def build(name):
        if name not in models:
            torch.manual_seed(1)
            models[name] = RewardModel(tiny(name).folder).eval()
        return models[name]

    return build


def _responses(count, seed=3):
    """Responses of different lengths, none of them made of padding or special tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(40, 60, (2 + row % 3,), generator=generator) for row in range(count)]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    return Responses(ids, ids != 0)


@torch.no_grad()
def _scores(model, samples, responses, **layout):
    prompts = collate(samples, **layout)
    return model(join(prompts, responses), model.encode(prompts))


def _each_alone(model, samples, responses):
    return torch.cat(
        [
            _scores(model, [sample], Responses(responses.ids[i : i + 1], responses.mask[i : i + 1]))
            for i, sample in enumerate(samples)
        ]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_do_not_depend_on_batch_size_and_neighbours(name, tiny, reward_model):
    model, samples = reward_model(name), tiny(name).samples()
    responses = _responses(len(samples))
    together = _scores(model, samples, responses)
    assert torch.allclose(together, _each_alone(model, samples, responses), atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_scores_do_not_depend_on_padding_and_order(name, pooling, tiny, reward_model):
    model, samples = reward_model(name), tiny(name).samples()
    model.pooling = pooling
    responses = _responses(len(samples))
    expected = _scores(model, samples, responses, side="right")
    left = _scores(model, samples, responses, side="left", extra=3)
    turned = _scores(model, samples[::-1], Responses(responses.ids.flip(0), responses.mask.flip(0)))
    model.pooling = "mean"
    assert torch.allclose(left, expected, atol=SCORE_TOLERANCE, rtol=0)
    assert torch.allclose(turned.flip(0), expected, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_depend_on_response_and_pictures(name, tiny, reward_model):
    model, samples = reward_model(name), tiny(name).samples()
    responses = _responses(len(samples))
    scores = _scores(model, samples, responses)
    others = _scores(model, samples, _responses(len(samples), seed=4))
    assert ((scores - others).abs() > SCORE_TOLERANCE).all()
    for sample in samples:
        if "pixel_values" in sample:
            prompts = collate([sample])
            inverted = {
                key: -value if key in ("pixel_values", "pixel_values_videos") else value
                for key, value in prompts.media.items()
            }
            one = Responses(responses.ids[:1], responses.mask[:1])
            with torch.no_grad():
                one_way, other_way = (
                    model(join(prompts, one), model.encode(prompts._replace(media=media)))
                    for media in (prompts.media, inverted)
                )
            assert (one_way - other_way).abs() > SCORE_TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_scores_the_same_bit_for_bit(name, tiny, reward_model, tmp_path):
    model, samples = reward_model(name), tiny(name).samples()
    responses = _responses(len(samples))
    model.store_statistics(0.25, 2.0)
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert torch.equal(_scores(loaded, samples, responses), _scores(model, samples, responses))
    assert (loaded.score_mean.item(), loaded.score_std.item(), loaded.pooling) == (0.25, 2.0, "mean")


def test_a_saved_model_is_a_transformers_folder_with_the_head_in_its_weights(tiny, reward_model, tmp_path):
    reward_model("internvl").save_pretrained(tmp_path)
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) == {"score.weight"}


def test_transformers_own_classifier_gives_the_same_scores_for_a_text_model(tiny, tmp_path):
    family = tiny("qwen2")
    model = RewardModel(family.folder, pooling="last").eval()
    model.save_pretrained(tmp_path)
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    samples = family.samples()
    responses = _responses(len(samples))
    sequences = join(collate(samples), responses)
    ones = [row[mask] for row, mask in zip(sequences.ids, sequences.mask, strict=True)]
    with torch.no_grad():
        theirs = torch.cat([judge(input_ids=row[None]).logits.flatten() for row in ones])
    assert torch.allclose(_scores(model, samples, responses), theirs, atol=SCORE_TOLERANCE, rtol=0)


def test_the_head_starts_with_the_spread_of_its_width(tiny):
    torch.manual_seed(0)
    weights = torch.cat([RewardModel(tiny("qwen2").folder).score.weight for _ in range(30)])
    expected = (weights.shape[1] + 1) ** -0.5
    assert weights.std().item() == pytest.approx(expected, rel=0.05)
    assert weights.mean().abs() < expected / 10


def test_frozen_parts_get_no_gradient_and_the_rest_gets_one(tiny):
    family = tiny("internvl")
    model = RewardModel(family.folder, freeze=["vision", "projector"]).train()
    prompts = collate(family.samples())
    model(join(prompts, _responses(len(prompts.ids))), model.encode(prompts)).sum().backward()
    roles = model.backbone.role_parameters()
    assert all(parameter.grad is None for role in ("vision", "projector") for parameter in roles[role])
    assert all(parameter.grad is not None for parameter in [*roles["language"], model.score.weight])


def test_a_bfloat16_backbone_keeps_a_float32_head_and_score(tiny):
    family = tiny("internvl")
    model = RewardModel(family.folder, dtype="bfloat16").eval()
    samples = family.samples(["text"])
    assert model.score.weight.dtype == torch.float32
    assert _scores(model, samples, _responses(len(samples))).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert _scores(model, samples, _responses(len(samples))).dtype == torch.float32


def test_token_pooling_reads_the_reward_token(tiny):
    family = tiny("qwen2")
    model = RewardModel(family.folder, pooling="token", reward_token_id=41).eval()
    samples = family.samples(["text"])
    ids = torch.tensor([[50, 41, 52]]).repeat(len(samples), 1)
    full, cut = (
        Responses(ids, torch.ones_like(ids).bool()),
        Responses(ids[:, :2], torch.ones(len(ids), 2).bool()),
    )
    # what follows the reward token cannot change its causal hidden state
    assert torch.allclose(
        _scores(model, samples, full), _scores(model, samples, cut), atol=SCORE_TOLERANCE, rtol=0
    )


def test_normalised_scores_use_the_stored_statistics(tiny):
    model = RewardModel(tiny("qwen2").folder)
    model.store_statistics(1.0, 2.0)
    assert model.normalise(torch.tensor([1.0, 5.0])).tolist() == [0.0, 2.0]


def test_another_pooling_than_a_head_was_trained_with_is_refused(tiny, tmp_path):
    RewardModel(tiny("qwen2").folder, pooling="last").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="pooling: last"):
        RewardModel(str(tmp_path), pooling="mean")
    assert RewardModel(str(tmp_path)).pooling == "last"


def test_token_pooling_without_a_token_is_refused(tiny):
    with pytest.raises(InputError, match="reward_token_id"):
        RewardModel(tiny("qwen2").folder, pooling="token")


def test_a_folder_that_is_no_reward_model_is_refused_by_from_pretrained(tiny):
    with pytest.raises(InputError, match=SETTINGS_FILE):
        RewardModel.from_pretrained(tiny("qwen2").folder)


def test_a_lost_head_is_an_error_and_never_a_fresh_one(tiny, tmp_path):
    folder = tiny("qwen2").folder
    RewardModel(folder).backbone.save_pretrained(tmp_path)
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({"format": 1, "pooling": "mean"}))
    with pytest.raises(InputError, match=r"score\.weight"):
        RewardModel(str(tmp_path))
