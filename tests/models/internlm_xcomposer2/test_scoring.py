# SPDX-License-Identifier: Apache-2.0
"""The released methods score, compare and rank, with their recorded results."""

from __future__ import annotations

import pytest
import torch

from ixc_lightning.models.internlm_xcomposer2.scoring import ReleasedScorer
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.types import InputError, Sequences
from tests.models.internlm_xcomposer2.reference import (
    byte_processor,
    case,
    image,
    write_released,
    write_video,
)

TOLERANCE = 1e-4
REWARD_CASES = ("text", "sys", "img", "img2", "imgp", "multi")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = write_released(tmp_path_factory.mktemp("ixc") / "reward", "reward")
    return ReleasedScorer(RewardModel(str(folder)).eval(), byte_processor())


def about(name):
    recorded = case(f"reward.{name}")
    return recorded["conversation"], [image(one) for one in recorded["images"]]


@pytest.mark.parametrize("name", REWARD_CASES)
def test_recorded_scores(scorer, name):
    score = scorer.score(*about(name), hd_num=9)
    assert score == pytest.approx(case(f"reward.{name}")["score_last_token"], abs=TOLERANCE)
    prompt = case(f"reward.{name}")["prompt"]
    assert scorer.score(prompt, about(name)[1], hd_num=9) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("batch", ["batch_mixed", "batch_img", "batch_all"])
def test_recorded_batches_and_ranks(scorer, batch):
    names = case(f"reward.{batch}")["names"]
    conversations, images = zip(*(about(name) for name in names), strict=True)
    scores = scorer.scores(conversations, images, hd_num=9)
    assert scores == pytest.approx(case(f"reward.{batch}")["scores"], abs=TOLERANCE)
    assert scorer.rank(conversations, images, hd_num=9) == case(f"reward.{batch}")["rank"]


def test_the_recorded_comparison(scorer):
    comparison = case("reward.compare")
    first, second = about(comparison["a"]), about(comparison["b"])
    assert scorer.compare(*first, *second, hd_num=9) is comparison["result"] is False
    assert scorer.compare(*second, *first, hd_num=9) is True


def test_equal_scores_are_not_better_and_keep_their_order(scorer, monkeypatch):
    same = about("text")
    assert not scorer.compare(*same, *same)
    monkeypatch.setattr(scorer, "scores", lambda *_, **__: [1.0, 2.0, 1.0, 2.0])
    assert scorer.rank([same[0]] * 4, [[]] * 4) == [1, 3, 0, 2]


def test_one_conversation_gives_a_list_too(scorer):
    conversation, images = about("text")
    assert len(scorer.scores([conversation], [images])) == 1
    assert scorer.rank([conversation], [images]) == [0]


def test_the_defaults_are_those_of_the_methods(scorer, monkeypatch):
    seen = []
    processor = scorer.processor.image_processor
    original = processor.preprocess
    monkeypatch.setattr(
        processor, "preprocess", lambda *a, **k: seen.append(k["hd_num"]) or original(*a, **k)
    )
    scorer.score(*about("img"))
    scorer.score(*about("multi"))
    scorer.score(*about("img"), hd_num=9)
    assert seen == [24, 6, 6, 9]


def test_a_truncation_that_loses_the_reward_token_is_an_error(scorer):
    conversation, _ = about("text")
    assert case("reward.truncated")["max_length"] == 42
    with pytest.raises(InputError, match="47 tokens exceeds max_length=42, and a cut would lose the reward"):
        scorer.score(conversation, max_length=42)
    scorer.score(conversation, max_length=47)


def test_pictures_are_read_from_files(scorer, tmp_path):
    conversation, (picture,) = about("img")
    picture.save(tmp_path / "land.png")
    score = scorer.score(conversation, [tmp_path / "land.png"])
    assert score == scorer.score(conversation, [picture])
    for wrong in ("missing.png", tmp_path):
        with pytest.raises(InputError, match="cannot be opened as a picture"):
            scorer.score(conversation, [wrong])


def test_videos_are_read_from_files_and_shown_at_their_places(scorer, tmp_path):
    path = str(write_video(tmp_path / "clip.mp4"))
    answer = {"role": "assistant", "content": "A blur."}
    alone = [{"role": "user", "content": "What happens?"}, answer]
    between = [{"role": "user", "content": "First <ImageHere> then <ImageHere>"}, answer]
    assert scorer.score(alone, [path]) != scorer.score(alone)
    in_order = scorer.score(between, [path, image("land")])
    assert in_order != scorer.score(between, [image("land"), path])


def test_a_prompt_without_the_reward_token_is_refused(scorer):
    with pytest.raises(InputError, match="must end with"):
        scorer.score("[UNUSED_TOKEN_146]user\nHi[UNUSED_TOKEN_145]\n")


def test_unequal_numbers_are_refused(scorer):
    with pytest.raises(InputError, match="1 conversations but images for 2"):
        scorer.scores([about("text")[0]], [[], []])


def test_a_model_that_pools_over_all_tokens_is_refused(tiny):
    with pytest.raises(InputError, match="pools over all tokens"):
        ReleasedScorer(RewardModel(tiny("internlm_xcomposer2").folder), byte_processor())


def test_a_sequence_that_does_not_end_with_the_reward_token_is_never_scored(tiny):
    model = RewardModel(tiny("internlm_xcomposer2").folder, pooling="last", reward_token_id=41).eval()
    ids = torch.tensor([[50, 52, 41, 0], [50, 41, 52, 41]])
    whole = Sequences(ids, ids != 0, ids != 0, {})
    assert model(whole, None).shape == (2,)
    cut = Sequences(ids[:, :3], whole.mask[:, :3], whole.mask[:, :3], {})
    with pytest.raises(ValueError, match="does not end with the reward token 41"):
        model(cut, None)
