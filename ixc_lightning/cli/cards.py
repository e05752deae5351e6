# SPDX-License-Identifier: Apache-2.0
"""The command that writes evaluations into the card of an exported model."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard
from yaml import YAMLError

from ixc_lightning.cli.compare import benchmark_named
from ixc_lightning.metrics.benchmark import TiePolicy
from ixc_lightning.metrics.report import make_report, markdown
from ixc_lightning.metrics.result_files import read_results, write_whole
from ixc_lightning.publishing.card import FILE, Evaluation, with_evaluations
from ixc_lightning.publishing.redaction import public
from ixc_lightning.types import InputError


def card(folder: str, *, evaluations: list[str] | str, ties: TiePolicy = "wrong") -> None:
    """Write evaluations into the card of an exported model: the tables, and the figures that the hub shows.

    Those that the card had before are replaced; the rest of it, also what was written by hand, stays.

    Args:
        folder: an exported model, with its README.md.
        evaluations: files of scores, or folders with them, as `test` with recipes/evaluate writes.
        ties: what two equal scores count where the benchmark leaves it open.

    Raises:
        InputError: there is no card, or no place for evaluations in it, or a file holds no scores.
    """
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a folder that `export` wrote")
    try:
        old = ModelCard.load(path)
    except (ValueError, YAMLError) as error:
        raise InputError(
            f"{path}: its front matter cannot be read ({error}); mend it, or export again"
        ) from None
    pages = read_evaluations(evaluations, ties=ties)
    new = with_evaluations(old, pages, name=path.absolute().parent.name)
    write_whole(path, lambda file: new.save(file))
    print(f"wrote {len(pages)} evaluations into {path}")


def read_evaluations(paths: list[str] | str | None, *, ties: TiePolicy = "wrong") -> list[Evaluation]:
    """Compute the figures of files of scores, for a card.

    Args:
        paths: files that ``test`` wrote, or folders, which stand for the .jsonl files in them.
        ties: what two equal scores count where the benchmark leaves it open.

    Raises:
        InputError: naming the file, if it holds no scores, or a folder without any.
    """
    named = [paths] if isinstance(paths, str) else paths or []
    return [_evaluation(file, ties) for name in named for file in _files(name)]


def _files(name: str) -> list[str]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return [name]
    found = sorted(str(file) for file in folder.glob("*.jsonl"))
    if not found:
        raise InputError(
            f"{name}: holds no .jsonl files of scores; `test` with a recipe of recipes/evaluate writes them"
        )
    return found


def _evaluation(file: str, ties: TiePolicy) -> Evaluation:
    results = read_results(file)
    benchmark = benchmark_named(results.benchmark, file)(ties)
    try:
        report = make_report(benchmark, results.items, model=public(results.model))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{file}: the scores are not those of {benchmark.title} ({error})") from error
    figures = {name: figure.value for name, figure in report.figures.items()}
    return Evaluation(benchmark.name, benchmark.title, figures, markdown(report))
