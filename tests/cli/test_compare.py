# SPDX-License-Identifier: Apache-2.0
"""The command that compares two files of scores."""

import json

import pytest

from ixc_lightning.cli.main import main, run
from ixc_lightning.metrics import RMBench, VLRewardBench
from ixc_lightning.metrics.result_files import write_results
from ixc_lightning.types import InputError
from tests.metrics.scored import item, numbered

GROUPS = ("general", "hallucination", "reasoning")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Scores of two models on twelve items; the second is right on every third one more."""
    monkeypatch.setenv("COLUMNS", "160")
    paths = []
    for name, right in (("a", [0, 1, 0]), ("b", [1, 1, 0])):
        scored = [item(group, float(right[n % 3]), 0.5) for group in GROUPS for n in range(4)]
        write_results(tmp_path / name, VLRewardBench(), f"model {name}", numbered(*scored))
        paths.append(str(tmp_path / f"{name}/vl_rewardbench.jsonl"))
    return paths


def cells(text, first):
    """The cells of the row that begins so."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_figures_of_both_models_stand_side_by_side(files, capsys):
    main(["compare", *files, "--resamples", "50"])
    shown = capsys.readouterr().out
    assert "VL-RewardBench, 12 items that both files hold" in shown
    assert "A: model a" in shown
    assert "B: model b" in shown
    # One of four items is right with A, three with B.
    assert cells(shown, "official_overall")[1:4] == ["25.0", "75.0", "+50.0"]
    assert "B is better on 6 items, A on 0, both alike on 6." in shown
    assert "only in" not in shown


def test_parquet_and_json_lines_compare_with_each_other(files, capsys):
    main(["compare", files[0], files[1].replace(".jsonl", ".parquet"), "--resamples", "5"])
    assert "12 items" in capsys.readouterr().out


def test_unmatched_items_are_named(files, capsys):
    with open(files[1]) as file:
        lines = file.readlines()
    with open(files[1], "w") as file:
        file.writelines(
            [*lines[1:], json.dumps({**json.loads(lines[0]), "digest": "new", "id": "[odd]"}) + "\n"]
        )
    main(["compare", *files, "--resamples", "5"])
    shown = capsys.readouterr().out
    assert "11 items that both files hold" in shown
    assert f"only in {files[0]}: 1 items, 0 (row 0)" in shown
    assert f"only in {files[1]}: 1 items, [odd] (row 0)" in shown


def test_files_of_different_benchmarks_are_refused(files, tmp_path):
    write_results(tmp_path, RMBench(), "m", numbered(item("chat", (1.0,) * 3, (0.0,) * 3)))
    with pytest.raises(
        InputError, match=r"holds vl_rewardbench and .* holds rm_bench: give two files of one"
    ):
        run(["compare", files[0], str(tmp_path / "rm_bench.jsonl")])


def _changed(path, **fields):
    with open(path) as file:
        rows = [{**json.loads(line), **fields} for line in file]
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_files_without_a_common_item_are_refused(files):
    _changed(files[1], digest="other")
    with pytest.raises(InputError, match="have no item in common"):
        run(["compare", *files])


def test_a_benchmark_that_nobody_knows_is_refused(files):
    for path in files:
        _changed(path, benchmark="my_bench")
    with pytest.raises(InputError, match=r"'my_bench' is none of .*rm_bench, video_rewardbench"):
        run(["compare", *files])


def test_scores_that_do_not_fit_the_benchmark_are_refused(files):
    for path in files:
        _changed(path, benchmark="rm_bench")
    with pytest.raises(InputError, match="are not those of RM-Bench"):
        run(["compare", *files])


def test_a_number_of_resamples_that_is_none_is_refused(files):
    with pytest.raises(InputError, match="--resamples is 0"):
        run(["compare", *files, "--resamples", "0"])


def test_a_missing_file_ends_in_one_message(files, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", files[0], "nowhere.jsonl"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: nowhere.jsonl: no such file")
