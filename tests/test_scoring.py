# SPDX-License-Identifier: Apache-2.0
"""Scores from Python: those of the batch pipeline, whatever is scored beside, for media in every form."""

import math

import numpy as np
import pytest
import torch

from ixc_lightning.datamodules.given_media import picture_bytes
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.functional.masking import join
from ixc_lightning.models import RewardModel
from ixc_lightning.scoring import Comparison, Scorer
from ixc_lightning.types import InputError
from tests.digits import FRAMES, preference_data

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
CLIP = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def scorer(reward_folder):
    return Scorer.from_pretrained(reward_folder, video_frames=FRAMES, device="cpu")


def _said(text, *parts, question="what is it?"):
    content = [*parts, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": text}]


MIXED = [
    _said("a nine"),
    _said("two", question="how many?"),
    _said("a nine"),
    _said("five 5 five"),
    _said(""),
]
MIXED_IMAGES = [[PIXELS], [PIXELS, PIXELS[::-1].copy()], [], [], [PIXELS]]
MIXED_VIDEOS = [[], [], [], [CLIP], []]


def _close(got, want):
    return all(math.isclose(a, b, abs_tol=SCORE_TOLERANCE) for a, b in zip(got, want, strict=True))


def _conversation(record, answer):
    """A record as a program would have it, media inside."""
    turns = [
        {
            "role": turn["role"],
            "content": [
                part
                if part["type"] == "text"
                else {"type": part["type"], part["type"]: record.media[part["file"]]}
                for part in turn["content"]
            ],
        }
        for turn in record.messages
    ]
    return [*turns, *answer]


def test_scores_are_those_of_the_batch_pipeline_for_all_modalities(digits, reward_folder, scorer):
    data = preference_data(digits, reward_folder, eval_batch_size=16)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    with torch.no_grad():
        expected = scorer.model(join(batch.prompts, batch.chosen), scorer.model.encode(batch.prompts))
    records = [data.dataset("val").named(key) for key in batch.keys]
    assert {record.modality for record in records} == {"text", "image", "multi_image", "video"}
    assert _close(scorer.score([_conversation(one, one.chosen) for one in records]), expected.tolist())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_score_does_not_depend_on_what_is_scored_beside(batch_size, scorer):
    expected = scorer.score(MIXED, MIXED_IMAGES, MIXED_VIDEOS)
    other = Scorer(scorer.model, scorer.encoder, batch_size=batch_size)
    assert _close(other.score(MIXED, MIXED_IMAGES, MIXED_VIDEOS), expected)
    backwards = other.score(MIXED[::-1], MIXED_IMAGES[::-1], MIXED_VIDEOS[::-1])
    assert _close(backwards[::-1], expected)
    assert len({round(score, 4) for score in expected}) == len(MIXED)  # all rows are different ones


def test_a_picture_scores_the_same_in_every_form(scorer, tmp_path):
    from PIL import Image

    (tmp_path / "a.png").write_bytes(picture_bytes(PIXELS, where="x"))
    path = tmp_path / "a.png"
    forms = [PIXELS, Image.fromarray(PIXELS), path, str(path), path.read_bytes()]
    scores = scorer.score([_said("a nine")] * len(forms), [[form] for form in forms])
    assert len(set(scores)) == 1
    assert scores[0] != scorer.score([_said("a nine")], [[255 - PIXELS]])[0]


def test_normalised_scores_use_the_statistics_that_lie_with_the_model(scorer):
    raw = scorer.score(MIXED[2:3])
    assert scorer.score_normalised(MIXED[2:3]) == pytest.approx([(raw[0] - 0.5) / 2.0])


def test_the_score_of_one_conversation_comes_in_a_list_too(scorer):
    assert len(scorer.score(MIXED[2:3])) == 1
    assert scorer.score([]) == []


def test_equal_prompts_are_encoded_once(scorer, monkeypatch):
    seen = []
    encode = scorer.model.encode
    monkeypatch.setattr(
        scorer.model,
        "encode",
        lambda prompts: seen.append(len(prompts.media["pixel_values"])) or encode(prompts),
    )
    scores = scorer.score([_said(text) for text in "abca"], [[PIXELS]] * 4)
    assert seen == [1]
    assert scores[0] == scores[3]
    scorer.score_responses("what is it?", ["a", "b", "c"], [PIXELS])
    assert seen == [1, 1]


def test_compare_says_both_scores_who_is_preferred_and_how_surely(scorer):
    found = scorer.compare("what is it?", "a nine", "two two", [PIXELS])
    alone = scorer.score([_said("a nine"), _said("two two")], [[PIXELS]] * 2)
    assert _close(found, alone)
    assert found.preferred == ("a" if alone[0] > alone[1] else "b")
    assert found.probability == pytest.approx(1 / (1 + math.exp(alone[1] - alone[0])), abs=1e-5)
    assert scorer.compare("what is it?", "same", "same").preferred is None
    assert Comparison(0.0, 800.0).probability == 0.0


def test_rank_gives_the_rank_of_each_response_and_not_their_order(scorer, monkeypatch):
    monkeypatch.setattr(scorer, "score_responses", lambda *_: [-0.77, -0.63, -0.13, -0.43, -0.67])
    assert scorer.rank("q", list("abcde")) == [5, 3, 1, 2, 4]


def test_equal_responses_share_the_better_rank(scorer):
    ranks = scorer.rank("what is it?", ["a nine", "two", "a nine"], [PIXELS])
    assert sorted(ranks) in ([1, 1, 3], [1, 2, 2])
    assert ranks[0] == ranks[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scorer: scorer.score(_said("x")), "must be a list of conversations"),
        (
            lambda scorer: scorer.score([_said("x")], [[], []]),
            "images: there are 1 conversations but images for 2",
        ),
        (lambda scorer: scorer.score([_said("x")[:1]]), "conversations, sample '0', messages: must end with"),
        (
            lambda scorer: scorer.score([_said("x"), _said("x")], [[], ["no.png"]]),
            r"conversations:1, images\[0\]: no.png",
        ),
        (
            lambda scorer: scorer.score([_said("x")], [[b"no picture"]]),
            "conversations:0.00.image: cannot be decoded",
        ),
        (lambda scorer: scorer.score([_said("x")], [["http://host/a.png"]]), "give allow_urls"),
        (lambda scorer: scorer.rank("q", []), "responses: is empty"),
        (lambda scorer: Scorer(scorer.model, scorer.encoder, batch_size=0), "batch_size is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_place(call, message, scorer, unchecked_shapes):
    with pytest.raises(InputError, match=message):
        call(scorer)


def test_a_folder_without_a_reward_model_is_refused(tiny_folder):
    with pytest.raises(InputError, match="is not a reward model"):
        Scorer.from_pretrained(tiny_folder)


def test_a_reward_token_must_stand_behind_every_response(scorer, tiny_folder):
    model = RewardModel(str(tiny_folder), pooling="last", reward_token_id=3)
    with pytest.raises(InputError, match="give response_suffix"):
        Scorer(model, scorer.encoder)
    token = scorer.encoder.tokenizer.decode([3])
    assert Scorer(model, ChatEncoder(str(tiny_folder), response_suffix=token)).score(MIXED[2:3])


def test_scores_that_are_no_numbers_are_refused(scorer):
    broken = Scorer(scorer.model, scorer.encoder)
    weight = scorer.model.score.weight.data.clone()
    scorer.model.score.weight.data.fill_(float("nan"))
    try:
        with pytest.raises(InputError, match=r"conversations:0: the model gives \[nan"):
            broken.score(MIXED[2:3])
    finally:
        scorer.model.score.weight.data.copy_(weight)
