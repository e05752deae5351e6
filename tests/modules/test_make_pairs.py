# SPDX-License-Identifier: Apache-2.0
"""Answers are made once and judged; what the judge prefers becomes pairs, and everything else is counted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import lightning as L
import pytest
import torch
from filelock import FileLock
from torch.nn.utils.rnn import pad_sequence

from ixc_lightning.callbacks import PairWriter
from ixc_lightning.datamodules import PairMakingDataModule, PreferenceDataModule
from ixc_lightning.datamodules.processing import text_of
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.models import Backbone
from ixc_lightning.modules import MakePairsModule
from ixc_lightning.processors import load_processor
from ixc_lightning.rollout import (
    ChatClient,
    ExactMatch,
    Limits,
    PairwiseJudge,
    Sampling,
    VerifierJudge,
    judge_client,
    stack_rollout,
)
from ixc_lightning.rollout.judge import Ruling
from ixc_lightning.types import InputError, Responses
from tests.digits import FRAMES, HELDOUT
from tests.rollout.judge_server import KEY, Fault, JudgeServer, serving

pytestmark = [pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")]

SAMPLES = 3
KILL_SECONDS = 300
MODALITIES = {"text", "image", "multi_image", "video"}


class Scripted:
    """Says the answer of each prompt's record once, then other texts."""

    def __init__(self, tokenizer, others=("no no", "good")):
        self.tokenizer = tokenizer
        self.others = others
        self.seeds = []

    def generate(self, policy, batch, visuals, sampling, *, seed):
        self.seeds.append(seed)
        end = self.tokenizer.eos_token_id
        said = [*batch.answers, *(text for text in self.others for _ in batch.keys)]
        rows = [torch.tensor([*self.tokenizer(text)["input_ids"], end]) for text in said]
        mask = pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids in rows], batch_first=True)
        ended = torch.ones(len(rows), dtype=torch.bool)
        return stack_rollout(batch, Responses(pad_sequence(rows, batch_first=True), mask), ended)


@pytest.fixture(scope="module")
def scripted(tiny_folder):
    return partial(Scripted, load_processor(str(tiny_folder)).tokenizer)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(JudgeServer()) as server:
        yield server


def _asking(server, cache, **options):
    client = ChatClient("judge-1", server.url, limits=Limits(concurrency=2), tries=2)
    return PairwiseJudge(client, cache=str(cache), **options)


def _make(digits, tiny, root, *, kind="prompt", limit=None, records=None, batch=4, **options):
    """One run, and its module."""
    settings = {"sampling": Sampling(n=SAMPLES, max_tokens=4), "judge": VerifierJudge(ExactMatch())}
    module = MakePairsModule(partial(Backbone, str(tiny), head=True), **{**settings, **options})
    data = PairMakingDataModule(
        str(tiny),
        predict=str(digits / kind / "heldout"),
        kind=kind,
        batch_size=batch,
        limit=records,
        video_frames=FRAMES,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_predict_batches=limit,
        callbacks=[PairWriter()],
    )
    trainer.predict(module, data)
    return module


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _report(root):
    return json.loads((root / "make_pairs/pairs/report.json").read_text())


def _answers(root):
    return [row for path in sorted((root / "make_pairs/parts").iterdir()) for row in _lines(path)]


def _pairs(root):
    return list(ShardDataset(str(root / "make_pairs/pairs/preference"), kind="preference"))


def test_a_verifier_prefers_the_right_answer_of_every_prompt(digits, tiny_folder, tmp_path, scripted):
    _make(digits, tiny_folder, tmp_path, engine=scripted(), pairs_per_prompt=2)
    pairs = _pairs(tmp_path)
    assert len(pairs) == 2 * HELDOUT
    assert {record.modality for record in pairs} == MODALITIES
    for record in pairs:
        assert text_of(record.chosen) == record.answer
        assert text_of(record.rejected) in ("no no", "good")
    report = _report(tmp_path)
    assert report["counts"] == {
        "prompts": HELDOUT,
        "prompts with a pair": HELDOUT,
        "verified responses": SAMPLES * HELDOUT,
        "responses": SAMPLES * HELDOUT,
        "pairs": 2 * HELDOUT,
    }
    assert report["judge"]["verifier"] == "ExactMatch"
    assert report["policy"] == str(tiny_folder)
    assert report["sampling"]["n"] == SAMPLES


def test_the_answer_of_an_instruction_takes_part(digits, tiny_folder, tmp_path, scripted):
    judge = VerifierJudge(ExactMatch(r"(?:.*\b(?:is|are) )?(?:the )?(.+?)(?: one| digits)?\.?$"))
    _make(
        digits,
        tiny_folder,
        tmp_path,
        kind="instruction",
        judge=judge,
        engine=scripted(others=("no no", "no")),
    )
    sources = {line["chosen"]["from"] for line in _lines(tmp_path / "make_pairs/pairs/provenance.jsonl")}
    assert sources == {"sample", "reference"}
    records = ShardDataset(str(digits / "instruction/heldout"), kind="instruction")
    for entry, record in zip(_answers(tmp_path), records, strict=True):
        assert len(entry["candidates"]) == SAMPLES + 1
        reference = entry["candidates"][-1]
        assert (reference["from"], reference["response"]) == ("reference", text_of(record.messages[-1:]))
        assert reference["score"] == 1.0


def test_a_policy_s_own_draws_differ_and_follow_from_the_seed(digits, tiny_folder, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        _make(digits, tiny_folder, tmp_path / name, seed=seed)
    one, again, other = (_answers(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again != other
    assert len({entry["seed"] for entry in one}) == HELDOUT // 4
    assert sum(len({c["response"] for c in entry["candidates"]}) for entry in one) > 2 * HELDOUT


def test_a_model_s_verdicts_make_pairs_with_their_provenance(digits, tiny_folder, tmp_path, scripted, server):
    judge = _asking(server, tmp_path / "cache", comparisons=2)
    _make(digits, tiny_folder, tmp_path, judge=judge, engine=scripted(), pairs_per_prompt=3)
    lines = _lines(tmp_path / "make_pairs/pairs/provenance.jsonl")
    assert {line["chosen"]["response"] for line in lines} == {"good"}
    assert all([one["judge"] for one in line["verdicts"]] == ["judge-1-2025-01-21"] * 2 for line in lines)
    report = _report(tmp_path)
    counts, left_out = report["counts"], report["left_out"]
    assert counts["comparisons"] == 2 * HELDOUT
    assert counts["comparisons agreed"] + left_out["comparisons: tie"] == 2 * HELDOUT
    assert counts["pairs"] == counts["comparisons agreed"] == len(lines)
    assert report["judge"]["requests"] == len(server.asked) == 4 * HELDOUT
    assert KEY not in json.dumps(report)


def test_the_judge_sees_the_pictures_of_every_prompt(digits, tiny_folder, tmp_path, scripted, server):
    _make(digits, tiny_folder, tmp_path, judge=_asking(server, tmp_path / "cache"), engine=scripted())
    seen = Counter(len(asked.pictures) for asked in server.asked)
    records = ShardDataset(str(digits / "prompt/heldout"), kind="prompt")
    shown = [
        FRAMES if record.modality == "video" else sum(part["type"] == "image" for part in record.parts)
        for record in records
    ]
    assert set(seen) == set(shown)
    assert seen[0] == 6 * shown.count(0)  # three comparisons in both orders


def test_a_run_that_stopped_goes_on_and_answers_nothing_twice(digits, tiny_folder, tmp_path, scripted):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    _make(digits, tiny_folder, whole, engine=scripted())
    _make(digits, tiny_folder, halves, engine=scripted(), limit=2)
    assert [entry["row"] for entry in _answers(halves)] == list(range(8))
    assert not (halves / "make_pairs/pairs").exists()
    _make(digits, tiny_folder, halves, engine=scripted())
    assert [entry["row"] for entry in _answers(halves)] == list(range(HELDOUT))
    for name in ("preference/shard-000000.tar", "provenance.jsonl", "report.json"):
        assert (halves / "make_pairs/pairs" / name).read_bytes() == (
            whole / "make_pairs/pairs" / name
        ).read_bytes()


def test_a_server_that_fails_ends_a_run_that_then_judges_nothing_twice(
    digits, tiny_folder, tmp_path, scripted, server
):
    first = _asking(server, tmp_path / "cache")

    def failing(asked):
        if len(server.asked) == 40:
            server.faults.extend([Fault(500)] * 4)
        return usual(asked)

    usual, server.rule = server.rule, failing
    with pytest.raises(InputError, match="2 tries in a row failed"):
        _make(digits, tiny_folder, tmp_path, judge=first, engine=scripted())
    assert not (tmp_path / "make_pairs/pairs").exists()
    engine = scripted()
    _make(digits, tiny_folder, tmp_path, judge=_asking(server, tmp_path / "cache"), engine=engine)
    assert engine.seeds == []  # nothing was answered again
    asked = Counter(json.dumps(one.body) for one in server.asked)
    assert len(server.asked) == 6 * HELDOUT == _report(tmp_path)["counts"]["comparisons"] * 2
    assert max(asked.values()) == 1


def test_other_settings_of_the_choice_make_other_pairs_of_the_same_answers(
    digits, tiny_folder, tmp_path, scripted
):
    _make(digits, tiny_folder, tmp_path, engine=scripted())
    assert len(_pairs(tmp_path)) == HELDOUT
    engine = scripted()
    _make(digits, tiny_folder, tmp_path, engine=engine, pairs_per_prompt=2)
    assert len(_pairs(tmp_path)) == 2 * HELDOUT
    assert engine.seeds == []


def test_lengths_bound_the_pairs_and_what_they_leave_out_is_counted(digits, tiny_folder, tmp_path, scripted):
    long = " ".join(["no"] * 20)
    engine = scripted(others=(long, long))
    _make(digits, tiny_folder, tmp_path, engine=engine, min_length_ratio=0.9)
    report = _report(tmp_path)
    assert report["counts"]["pairs"] == 0
    assert report["left_out"]["pairs whose chosen response is too short"] == 2 * HELDOUT


def test_empty_and_cut_off_answers_are_left_out_and_counted(digits, tiny_folder, tmp_path, scripted):
    _make(digits, tiny_folder, tmp_path, engine=scripted(others=("", " ")))
    report = _report(tmp_path)
    assert report["left_out"]["responses that are empty or were cut off"] == 2 * HELDOUT
    assert report["counts"]["pairs"] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "answers"),
        ({"sampling": Sampling(n=2, max_tokens=4)}, "answers"),
        ({"kind": "instruction"}, "data"),
    ],
)
def test_answers_of_another_run_are_never_mixed(digits, tiny_folder, tmp_path, scripted, change, what):
    _make(digits, tiny_folder, tmp_path, engine=scripted(), limit=1)
    with pytest.raises(InputError, match=f"another run, whose {what} was another one"):
        _make(digits, tiny_folder, tmp_path, engine=scripted(), **change)


def test_answers_of_another_policy_are_told_apart(digits, tiny_folder, tmp_path, scripted):
    _make(digits, tiny_folder, tmp_path, engine=scripted(), limit=1)

    class Other(Backbone):
        def __init__(self, source):
            super().__init__(source, head=True)
            self.model.get_output_embeddings().weight.data.mul_(1.5)

    data = PairMakingDataModule(str(tiny_folder), predict=str(digits / "prompt/heldout"), video_frames=FRAMES)
    module = MakePairsModule(
        partial(Other, str(tiny_folder)),
        sampling=Sampling(n=SAMPLES, max_tokens=4),
        judge=VerifierJudge(ExactMatch()),
        engine=scripted(),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PairWriter()],
    )
    with pytest.raises(InputError, match="another run, whose answers was another one"):
        trainer.predict(module, data)


def test_two_runs_cannot_write_to_one_folder(digits, tiny_folder, tmp_path, scripted):
    (tmp_path / "make_pairs").mkdir()
    with FileLock(tmp_path / "make_pairs/.lock"), pytest.raises(InputError, match="another run is writing"):
        _make(digits, tiny_folder, tmp_path, engine=scripted())


def test_a_higher_limit_goes_on_behind_a_lower_one(digits, tiny_folder, tmp_path, scripted):
    _make(digits, tiny_folder, tmp_path, engine=scripted(), records=5)
    assert _report(tmp_path)["counts"]["prompts"] == 5
    _make(digits, tiny_folder, tmp_path, engine=scripted(), records=9)
    assert _report(tmp_path)["counts"]["prompts"] == 9
    assert sorted(entry["row"] for entry in _answers(tmp_path)) == list(range(9))
    _make(digits, tiny_folder, tmp_path, engine=scripted(), records=2)
    assert _report(tmp_path)["counts"]["prompts"] == 2


@pytest.mark.parametrize("options", [{"pairs_per_prompt": 0}, {"max_length_ratio": 0.0}])
def test_choices_that_leave_nothing_are_refused(options):
    with pytest.raises(InputError, match=r"model\.pairs_per_prompt, or a length ratio"):
        MakePairsModule(Backbone, sampling=Sampling(), judge=VerifierJudge(ExactMatch()), **options)


def test_a_policy_without_a_head_is_refused(digits, tiny_folder, tmp_path):
    module = MakePairsModule(
        partial(Backbone, str(tiny_folder)), sampling=Sampling(), judge=VerifierJudge(ExactMatch())
    )
    data = PairMakingDataModule(str(tiny_folder), predict=str(digits / "prompt/heldout"))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    with pytest.raises(InputError, match="the policy has no language head"):
        trainer.predict(module, data)


COMMAND = [
    *("-m", "ixc_lightning", "predict", "--config", "recipes/make_pairs.yaml"),
    *("--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.batch_size", "1"),
    *("--data.limit", str(HELDOUT)),
]


def _command(tiny, digits, root, *more):
    options = ["--model.policy.source", str(tiny), "--data.predict", str(digits / "prompt/heldout")]
    # an untrained policy says every token as often as the one that ends its turn: let many end it
    options += ["--model.sampling.stop_tokens", str(list(range(300, 700, 4)))]
    return [sys.executable, *COMMAND, *options, "--trainer.default_root_dir", str(root), *more]


@pytest.mark.slow
def test_the_recipe_s_pairs_feed_the_datamodule_of_the_reward_recipe(digits, tiny_folder, tmp_path):
    # an untrained policy is never right, but some of its answers are short
    more = [
        "--model.judge.verifier=ixc_lightning.rollout.Format",
        *("--model.judge.verifier.pattern", ".{1,25}", "--model.judge.needs_answer", "false"),
    ]
    subprocess.run(
        _command(tiny_folder, digits, tmp_path, *more, "--model.max_length_ratio", "null"),
        check=True,
        capture_output=True,
        timeout=KILL_SECONDS,
    )
    pairs = tmp_path / "make_pairs/pairs/preference"
    data = PreferenceDataModule(str(tiny_folder), train=str(pairs), batch_size=2, video_frames=FRAMES)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).keys) == 2


@pytest.mark.slow
def test_a_run_that_is_killed_twice_answers_and_judges_nothing_twice_and_loses_nothing(
    digits, tiny_folder, tmp_path, server
):
    def slow(asked):
        time.sleep(0.05)
        # the longer response wins; the same length is a tie
        sides = len(asked.a), len(asked.b)
        return {
            "content": f"Verdict: {'tie' if sides[0] == sides[1] else 'A' if sides[0] > sides[1] else 'B'}"
        }

    server.rule = slow
    judge = "ixc_lightning.rollout.PairwiseJudge"
    more = [
        f"--model.judge={judge}",
        *("--model.judge.client.model", "judge-1", "--model.judge.client.base_url", server.url),
        *("--model.judge.client.limits.concurrency", "2"),
        *("--model.judge.cache", str(tmp_path / "judgments")),
        *("--model.max_length_ratio", "null"),
    ]
    command, parts = _command(tiny_folder, digits, tmp_path, *more), tmp_path / "make_pairs/parts"
    environment = {**os.environ, "OPENAI_API_KEY": KEY}

    def kill_when(reached):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + KILL_SECONDS
            while time.monotonic() < deadline and not reached():
                assert process.poll() is None
                time.sleep(0.005)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    kill_when(lambda: sum(path.read_bytes().count(b"\n") for path in parts.glob("*")) >= 4)
    answered = len(_answers(tmp_path))
    assert 4 <= answered <= HELDOUT
    kill_when(lambda: len(server.asked) >= 20)
    assert not (tmp_path / "make_pairs/pairs").exists()
    judged = len(server.asked)
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=KILL_SECONDS)

    assert sorted(entry["row"] for entry in _answers(tmp_path)) == list(range(HELDOUT))
    report = _report(tmp_path)
    lost = 2  # as many as were under way when it was killed: their replies reached nobody
    requests = report["judge"]["requests"] + report["judge"]["judgments_from_cache"]
    assert requests <= len(server.asked) <= requests + lost
    assert report["judge"]["judgments_from_cache"] >= judged - lost
    assert report["counts"]["prompts"] == HELDOUT
    comparisons = report["counts"]["comparisons"]
    assert comparisons == report["counts"]["comparisons agreed"] + sum(
        count for reason, count in report["left_out"].items() if reason.startswith("comparisons")
    )
    assert len(_pairs(tmp_path)) == report["counts"]["pairs"] > 0


def test_the_rulings_of_any_judge_are_taken(digits, tiny_folder, tmp_path, scripted):
    class Last:
        fingerprint = ""

        def rate(self, texts, rollout):
            return [None] * len(texts)

        def decide(self, contests):
            for contest in contests:
                assert contest.conversation()[-1]["role"] == "user"
                yield Ruling([], {}, Counter(), Counter({"undecided": 1}))

        def summary(self):
            return {"judge": "last"}

    _make(digits, tiny_folder, tmp_path, judge=Last(), engine=scripted())
    assert _report(tmp_path)["left_out"] == {"undecided": HELDOUT}
