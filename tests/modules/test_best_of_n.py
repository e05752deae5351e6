# SPDX-License-Identifier: Apache-2.0
"""N answers to each prompt, all scored as the reward model scores them, the best one named."""

import json
from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from ixc_lightning.cli.main import main
from ixc_lightning.datamodules.shard_writer import Sample, write_shards
from ixc_lightning.functional.best_of_n import expected_best_of_n
from ixc_lightning.models import Backbone, RewardModel
from ixc_lightning.modules import BestOfNModule
from ixc_lightning.modules.best_of_n import best_of_n_curve
from ixc_lightning.processors import load_processor
from ixc_lightning.rollout import ExactMatch, Sampling, stack_rollout
from ixc_lightning.scoring import Scorer
from ixc_lightning.types import InputError, Responses
from tests.datamodules.samples import message
from tests.digits import FRAMES
from tests.modules.policies import prompt_data, same_judge

pytestmark = [pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")]

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
SAMPLES = 3
SAID = ["yes.", "no", "they are 3 4"]


def _answer(digits, tiny, *, batch=8, data=None, **options):
    settings = {"sampling": Sampling(n=SAMPLES, max_tokens=4), "correctness": ExactMatch(), "rows_at_once": 5}
    module = BestOfNModule(
        partial(Backbone, str(tiny), head=True), partial(same_judge, str(tiny)), **{**settings, **options}
    )
    shards = {"predict": str(digits / "prompt/heldout"), "eval_batch_size": batch, **(data or {})}
    data = prompt_data(digits, tiny, **shards)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    predictions = trainer.predict(module, data)
    return [entry for entries in predictions for entry in entries], module, data


@pytest.fixture(scope="module")
def answered(digits, tiny_folder):
    return _answer(digits, tiny_folder)


def test_each_prompt_has_n_candidates_and_the_best_has_the_highest_score(answered, digits):
    entries, _, data = answered
    assert [entry["row"] for entry in entries] == list(range(len(data.dataset("predict"))))
    assert {entry["modality"] for entry in entries} == {"text", "image", "multi_image", "video"}
    for entry in entries:
        scores = [one["score"] for one in entry["candidates"]]
        assert len(scores) == SAMPLES
        assert scores[entry["best"]] == max(scores)
        assert all(isinstance(one["correct"], bool) for one in entry["candidates"])


def test_rows_behind_a_prompt_that_cannot_be_used_are_those_of_their_records(digits, tiny_folder, tmp_path):
    asked = [message("user", "3?" * (200 if number in (0, 3) else 1)) for number in range(7)]
    fields = {"source": "test", "domain": "x"}
    samples = [Sample(f"s{n}", {"id": str(n), **fields, "messages": [a]}) for n, a in enumerate(asked)]
    write_shards(samples, tmp_path, kind="prompt", samples_per_shard=4)
    limits = {"max_tokens": 100, "on_bad_sample": "quarantine"}
    limits |= {"predict": str(tmp_path), "eval_batch_size": 2}
    with pytest.warns(UserWarning, match="left out of the evaluation"):
        entries, _, data = _answer(digits, tiny_folder, data=limits)
    assert [entry["row"] for entry in entries] == [1, 2, 4, 5, 6]
    for entry in entries:
        assert entry["key"] == ":".join(data.dataset("predict").place(entry["row"]))


def test_samples_of_one_prompt_are_draws_of_their_own(answered):
    said = [{one["response"] for one in entry["candidates"]} for entry in answered[0]]
    assert sum(len(texts) for texts in said) > 2 * len(said)


def test_a_seed_fixes_the_draws(answered, digits, tiny_folder):
    again, *_ = _answer(digits, tiny_folder)
    other, *_ = _answer(digits, tiny_folder, seed=1)
    assert again == answered[0]
    assert other != again


class Scripted:
    """Says the same texts to every prompt."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate(self, policy, batch, visuals, sampling, *, seed):
        end = self.tokenizer.eos_token_id
        said = [torch.tensor([*self.tokenizer(text)["input_ids"], end]) for text in SAID]
        rows = [ids for ids in said for _ in batch.keys]
        mask = pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids in rows], batch_first=True)
        ended = torch.ones(len(rows), dtype=torch.bool)
        return stack_rollout(batch, Responses(pad_sequence(rows, batch_first=True), mask), ended)


def test_scores_are_those_of_the_same_texts_from_python(digits, tiny_folder):
    tokenizer = load_processor(str(tiny_folder)).tokenizer
    entries, module, data = _answer(digits, tiny_folder, engine=Scripted(tokenizer))
    scorer = Scorer(module.reward_model, data.encoder)
    for entry in entries:
        record = data.dataset("predict").named(entry["key"])
        turns = [
            {**turn, "content": [_with_bytes(part, record.media) for part in turn["content"]]}
            for turn in record.messages
        ]
        assert [one["response"] for one in entry["candidates"]] == SAID
        scores = [one["score"] for one in entry["candidates"]]
        assert scores == pytest.approx(scorer.score_responses(turns, SAID), abs=SCORE_TOLERANCE)
        right = [text.removesuffix(".") == entry["answer"] for text in SAID]
        assert [one["correct"] for one in entry["candidates"]] == right


def _with_bytes(part, media):
    return part if part["type"] == "text" else {"type": part["type"], part["type"]: media[part["file"]]}


def test_each_picture_is_encoded_once_for_both_networks(digits, tiny_folder, monkeypatch):
    calls = []
    encode = Backbone.encode
    monkeypatch.setattr(Backbone, "encode", lambda self, prompts: calls.append(self) or encode(self, prompts))
    entries, *_ = _answer(digits, tiny_folder, batch=16)
    assert len(entries) == 16
    assert len(calls) == 1


def test_the_curve_is_the_estimator_s_mean_over_prompts(answered):
    entries = answered[0]
    curve = best_of_n_curve(entries)
    scores = torch.tensor([[one["score"] for one in entry["candidates"]] for entry in entries]).double()
    tokens = torch.tensor([[one["tokens"] for one in entry["candidates"]] for entry in entries])
    assert curve["score"] == pytest.approx(expected_best_of_n(scores).mean(dim=0).tolist())
    assert curve["tokens"] == pytest.approx(expected_best_of_n(scores, tokens).mean(dim=0).tolist())
    assert len(curve["correct"]) == SAMPLES


def test_without_a_verifier_nothing_is_said_to_be_right(digits, tiny_folder):
    entries, *_ = _answer(digits, tiny_folder, correctness=None)
    assert {one["correct"] for entry in entries for one in entry["candidates"]} == {None}
    assert set(best_of_n_curve(entries)) == {"score", "tokens"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_at_once": 0}, "rows_at_once is 0"),
        ({"policy": "headless"}, "the policy has no language head"),
        ({"judge": "suffix"}, "give reward_suffix"),
        ({"judge": "other"}, "the reward model has another tokenizer"),
        ({"judge": "broken"}, "the score of an answer is no number"),
    ],
)
def test_what_cannot_answer_or_judge_is_refused(options, message, digits, tiny_folder, tiny, monkeypatch):
    def broken(source):
        model = same_judge(source)
        model.score.weight.data.fill_(float("nan"))
        return model

    judges = {
        "suffix": partial(RewardModel, str(tiny_folder), pooling="last", reward_token_id=3),
        "other": partial(RewardModel, tiny("internvl").folder),
        "broken": partial(broken, str(tiny_folder)),
        None: partial(same_judge, str(tiny_folder)),
    }
    policy = partial(Backbone, str(tiny_folder), head=options.pop("policy", None) is None)
    judge = judges[options.pop("judge", None)]
    data = prompt_data(digits, tiny_folder, predict=str(digits / "prompt/heldout"), video_frames=FRAMES)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    with pytest.raises(InputError, match=message):
        trainer.predict(BestOfNModule(policy, judge, sampling=Sampling(n=2, max_tokens=2), **options), data)


def test_no_entries_have_no_curve():
    with pytest.raises(InputError, match="no prompt was answered"):
        best_of_n_curve([])


@pytest.mark.slow
def test_the_recipe_runs_from_the_command_line(digits, tiny_folder, tmp_path):
    judge = tmp_path / "judge"
    same_judge(str(tiny_folder)).save_pretrained(judge)
    load_processor(str(tiny_folder)).save_pretrained(judge)
    main(
        [
            *("predict", "--config", "recipes/best_of_n.yaml"),
            *("--model.policy.source", str(tiny_folder)),
            *("--model.reward_model.source", str(judge)),
            *("--data.predict", str(digits / "prompt/heldout")),
            *("--data.eval_batch_size", "8", "--data.num_workers", "0"),
            *("--trainer.accelerator", "cpu", "--trainer.limit_predict_batches", "2"),
            *("--trainer.default_root_dir", str(tmp_path)),
        ]
    )
    curve = json.loads((tmp_path / "best_of_n/curve.json").read_text())
    assert [row["n"] for row in curve] == list(range(1, 17))
    best = [json.loads(line) for line in (tmp_path / "best_of_n/best.jsonl").read_text().splitlines()]
    assert len(best) == 16
    assert curve[-1]["score"] == pytest.approx(sum(one["score"] for one in best) / len(best))
