# SPDX-License-Identifier: Apache-2.0
"""Every packaged evaluation runs on files in the released schema, and writes what the model scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ixc_lightning.cli.main import main
from ixc_lightning.cli.recipes import packaged_recipes
from ixc_lightning.cli.trainer import run_trainer
from ixc_lightning.datamodules.benchmarks import VLRewardBenchReader
from ixc_lightning.datamodules.benchmarks.items import BenchmarkItems
from ixc_lightning.datamodules.collate import prompts, responses
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.functional.masking import join
from ixc_lightning.metrics.result_files import read_results
from ixc_lightning.models import RewardModel
from ixc_lightning.types import InputError
from tests.datamodules.benchmarks.released import BENCHMARKS, SIZES, mm_rlhf_rewardbench

SAME = 1e-5  # float32, sums in another order
LIMIT = 300  # seconds
ROOT = Path(__file__).parents[2]
QUIET = (
    "--trainer.accelerator",
    "cpu",
    "--trainer.logger",
    "false",
    "--trainer.enable_progress_bar",
    "false",
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is left out"),
]


@pytest.fixture(scope="module")
def judge(tiny_folder, tmp_path_factory):
    """A reward model with a head of its own."""
    folder = tmp_path_factory.mktemp("judge") / "reward"
    torch.manual_seed(5)
    RewardModel(str(tiny_folder)).save_pretrained(folder)
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every benchmark in small, by name."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return {name: write(folder / name) for name, write in BENCHMARKS.items()}


def words(name, judge, path, out, *more):
    recipe = f"recipes/evaluate/{name}.yaml"
    given = ("--model.model.source", str(judge), "--data.path", str(path), "--model.folder", str(out))
    # Without a logger Lightning saves the settings there.
    return ["test", "--config", recipe, *given, "--trainer.default_root_dir", str(out), *QUIET, *more]


def test_every_benchmark_has_a_recipe_and_every_recipe_a_benchmark():
    recipes = {Path(name).stem for name in packaged_recipes() if name.startswith("recipes/evaluate/")}
    assert recipes == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_scored_from_the_command_line(name, judge, files, tmp_path, capsys):
    run = run_trainer(words(name, judge, files[name], tmp_path, "--model.resamples", "20"))
    results = read_results(str(tmp_path / f"{name}.jsonl"))
    assert results.benchmark == name
    assert results.items == read_results(str(tmp_path / f"{name}.parquet")).items
    assert [one.row for one in results.items] == list(range(SIZES[name]))
    source = run.datamodule.items
    for one, released in zip(results.items, source, strict=True):
        assert (len(one.chosen), len(one.rejected)) == (len(released.chosen), len(released.rejected))
        assert len({*one.chosen, *one.rejected}) > 1, "the model tells no response from another"
    page = (tmp_path / f"{name}.md").read_text()
    assert page in capsys.readouterr().out
    logged = run.trainer.logged_metrics
    assert 0 <= logged["test/official_overall"] <= 1 or name in ("rewardbench", "rewardbench_2")
    assert 0 <= logged["test/paper_overall"] <= 1


def test_scores_are_those_of_each_response_alone(judge, files, tmp_path):
    more = ("--data.batch_size", "3", "--model.responses_per_pass", "2")
    run_trainer(words("vl_rewardbench", judge, files["vl_rewardbench"], tmp_path, *more))
    model, encoder = RewardModel.from_pretrained(judge), ChatEncoder(str(judge))
    source = BenchmarkItems(VLRewardBenchReader(), str(files["vl_rewardbench"]))
    for one in read_results(str(tmp_path / "vl_rewardbench.jsonl")).items:
        candidates = source.candidates(one.row)
        for answer, score in zip(candidates.answers, one.chosen + one.rejected, strict=True):
            encoded = encoder(candidates.record, candidates.prompt, [answer])
            prompt = prompts([encoded])
            with torch.no_grad():
                own = model(join(prompt, responses(encoded.responses)), model.encode(prompt))
            assert score == pytest.approx(own.item(), abs=SAME)


def test_every_picture_is_encoded_once_and_every_response_scored_once(judge, files, tmp_path, monkeypatch):
    encoded, scored = [], []
    encode, forward = RewardModel.encode, RewardModel.forward

    def count_pictures(self, prompts):
        encoded.append(prompts)
        return encode(self, prompts)

    def count_responses(self, trees, visuals):
        scored.append(len(trees.prompt_index))
        return forward(self, trees, visuals)

    monkeypatch.setattr(RewardModel, "encode", count_pictures)
    monkeypatch.setattr(RewardModel, "forward", count_responses)
    run_trainer(words("vl_rewardbench", judge, files["vl_rewardbench"], tmp_path))
    assert len(encoded) == 2  # batches of four items
    assert sum(scored) == 16
    assert max(scored) <= 16


def test_the_batch_size_does_not_matter(judge, files, tmp_path):
    found = []
    for size in ("1", "7"):
        run_trainer(
            words("rewardbench_2", judge, files["rewardbench_2"], tmp_path, "--data.batch_size", size)
        )
        found.append(read_results(str(tmp_path / "rewardbench_2.jsonl")).items)
    for one, other in zip(*found, strict=True):
        assert one.chosen == pytest.approx(other.chosen, abs=SAME)
        assert one.rejected == pytest.approx(other.rejected, abs=SAME)


def test_what_one_run_writes_the_comparison_reads(judge, files, tmp_path, capsys):
    for name in ("one", "two"):
        more = ("--model.name", name)
        run_trainer(words("rm_bench", judge, files["rm_bench"], tmp_path / name, *more))
    capsys.readouterr()
    main(["compare", *(str(tmp_path / name / "rm_bench.jsonl") for name in ("one", "two"))])
    shown = capsys.readouterr().out
    assert "A: one" in shown
    assert "both alike on 5" in shown


def test_a_bad_item_is_left_out_counted_and_named(judge, tmp_path, capsys):
    folder = mm_rlhf_rewardbench(tmp_path / "data")
    (folder / "long/1.jpg").write_bytes(b"\xff\xd8\xff")
    command = words("mm_rlhf_rewardbench", judge, folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"mm_reward_bench\.jsonl:3"):
        run_trainer(command)
    with pytest.warns(UserWarning, match=r"mm_reward_bench\.jsonl, row 3 is left out"):
        run_trainer([*command, "--data.on_bad_item", "leave_out"])
    items = read_results(str(tmp_path / "out/mm_rlhf_rewardbench.jsonl")).items
    assert [one.row for one in items] == [0, 1, 3, 4]
    # The place of the bad item was filled with a copy of the first, which must not count.
    assert [(len(one.chosen), len(one.rejected)) for one in items] == [(1, 1)] * 4
    assert "1 items could not be scored" in capsys.readouterr().out


def test_a_model_without_a_trained_head_is_refused(tiny_folder, files, tmp_path):
    with pytest.raises(InputError, match="is not a reward model"):
        run_trainer(words("rm_bench", tiny_folder, files["rm_bench"], tmp_path))


def test_a_folder_that_is_not_given_is_asked_for(judge, files, tmp_path):
    command = words("rm_bench", judge, files["rm_bench"], tmp_path)
    with pytest.raises(InputError, match=r"data\.path is not given"):
        run_trainer([*command, "--data.path", "null"])


def test_numbers_that_are_none_are_refused(judge, files, tmp_path):
    command = words("rm_bench", judge, files["rm_bench"], tmp_path)
    with pytest.raises(InputError, match=r"model\.responses_per_pass"):
        run_trainer([*command, "--model.responses_per_pass", "0"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vl_rewardbench", "rewardbench_2"])
def test_two_ranks_write_the_file_that_one_writes(name, judge, files, tmp_path):
    found = []
    for ranks in ("1", "2"):
        more = ("--trainer.devices", ranks, "--trainer.strategy", "ddp", "--data.batch_size", "1")
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "ixc_lightning",
                *words(name, judge, files[name], tmp_path / ranks, *more),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=LIMIT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        found.append(
            [json.loads(line) for line in (tmp_path / ranks / f"{name}.jsonl").read_text().splitlines()]
        )
        assert ended.stdout.count("| figure |") == 1
    for one, other in zip(*found, strict=True):
        for side in ("chosen", "rejected"):
            assert one.pop(side) == pytest.approx(other.pop(side), abs=SAME)
        assert one == other
