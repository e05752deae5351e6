# SPDX-License-Identifier: Apache-2.0
"""The model card: front matter that the hub reads, and a page that tells a person what the folder is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ixc_lightning.publishing.loading_code import Exported, loading_section
from ixc_lightning.publishing.runs import HUB_ID, Run, finite, hub_datasets, installed_versions
from ixc_lightning.types import InputError

FILE = "README.md"
BEGIN, END = "<!-- evaluation -->", "<!-- /evaluation -->"
"""Between them stands what ``with_evaluations`` replaces; the rest of a card may be edited by hand."""
HEADING = re.compile(r"^## ", flags=re.MULTILINE)
TASK = "Reward benchmark"
"""Marks, in the front matter, the results that ``with_evaluations`` replaces."""
HEADLINES = {"val/accuracy": "accuracy", "val/exact_match": "exact_match", "val/greedy_correct": "accuracy"}
"""Metrics of validation that go into the front matter, with the hub's name of the metric."""


class Evaluation(NamedTuple):
    """A benchmark's figures for a card.

    Attributes:
        name: of the benchmark, in small letters.
        title: of the benchmark, for people.
        figures: shares in [0, 1] by name, with their convention first.
        page: the tables, in Markdown.
    """

    name: str
    title: str
    figures: dict[str, float]
    page: str


def make_card(
    exported: Exported,
    *,
    name: str,
    run: Run | None,
    base_model: str | None,
    evaluations: Sequence[Evaluation] = (),
) -> ModelCard:
    """Write the card of an exported model.

    Args:
        exported: what the folder holds.
        name: of the model on the hub, or of the folder.
        run: that made it, if it is known.
        base_model: hub id of the model that training started from, if it came from the hub.
        evaluations: figures on benchmarks.
    """
    results = [] if run is None else list(_validation(run, exported))
    datasets = [] if run is None else hub_datasets(run.data)
    data = ModelCardData(
        base_model=base_model,
        datasets=datasets or None,
        library_name="transformers" if exported.classifier or exported.role == "policy" else "ixc_lightning",
        pipeline_tag=_pipeline(exported),
        tags=["ixc_lightning", "reward-model" if exported.role == "reward" else "conversational"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    start = f"`{base_model}`" if base_model else "a local model"
    what = "Reward model" if exported.role == "reward" else "Policy"
    parts = [
        f"# {name}",
        f"{what} {exported.sees}, trained from {start} with ixc_lightning, after "
        f"[InternLM-XComposer2.5-Reward](https://arxiv.org/abs/2501.12368). {_purpose(exported)} Its "
        "licence is that of the model and the data that it was made from; name it before you publish it.",
        loading_section(exported, {} if run is None else run.reading),
        _model_section(exported),
        *(_run_sections(run) if run else ["The run that made this model is not recorded."]),
        f"## Evaluation\n\n{BEGIN}\n{END}",
        "## Versions\n\n"
        + _table(("package", "version"), (run.versions if run else installed_versions()).items()),
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    return with_evaluations(card, evaluations, name=name)


def with_evaluations(card: ModelCard, evaluations: Sequence[Evaluation], *, name: str) -> ModelCard:
    """Return a card with these evaluations in the place of those that it had; the rest stays as it is.

    Raises:
        InputError: the two marks of that place are not in the card.
    """
    head, begin, rest = card.text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise InputError(
            f"the card holds no {BEGIN} with {END} behind it: put both where the evaluation is to stand"
        )
    pages = "\n\n".join(HEADING.sub("### ", one.page.strip()) for one in evaluations)
    pages = pages or "Not evaluated on a benchmark yet."
    data = ModelCardData(**card.data.to_dict())
    kept = [one for one in data.eval_results or [] if one.task_name != TASK]
    results = [*kept, *(result for one in evaluations for result in _results(one))]
    data.eval_results = results or None
    data.model_name = (data.model_name or name) if results else None
    text = f"{head}{BEGIN}\n{pages}\n{END}{tail}"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def base_model_of(source: str) -> str | None:
    """Return the hub id that a model descends from: the source itself, or what a local folder's card says."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source if HUB_ID.fullmatch(source) else None
    try:
        base = ModelCard.load(folder / FILE, ignore_metadata_errors=True).data.base_model
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return base if isinstance(base, str) else None


def _results(evaluation: Evaluation) -> Iterable[EvalResult]:
    for figure, value in finite(evaluation.figures).items():
        yield EvalResult(
            task_type="preference-evaluation",
            task_name=TASK,
            dataset_type=evaluation.name,
            dataset_name=evaluation.title,
            metric_type="accuracy",
            metric_name=figure.replace("_", " "),
            metric_value=round(value, 4),
        )


def _validation(run: Run, exported: Exported) -> Iterable[EvalResult]:
    folders = [entry["folder"] for entry in run.data if entry["split"] == "val"]
    for logged, metric in HEADLINES.items():
        if logged in run.metrics:
            yield EvalResult(
                task_type="preference-evaluation" if exported.role == "reward" else "text-generation",
                dataset_type="held-out",
                dataset_name=", ".join(folders) or "held-out records of the run",
                metric_type=metric,
                metric_name=logged,
                metric_value=round(run.metrics[logged], 4),
            )


def _pipeline(exported: Exported) -> str | None:
    if exported.role == "policy":
        return "image-text-to-text" if exported.is_multimodal else "text-generation"
    return "text-classification" if exported.classifier else None


def _purpose(exported: Exported) -> str:
    if exported.role == "policy":
        return "It answers."
    return (
        "It scores a response to a prompt; higher is better. Scores are unbounded, and only those of the "
        "same model compare."
    )


def _model_section(exported: Exported) -> str:
    rows: dict[str, str] = {
        "architecture": exported.architecture,
        "parameters": f"{exported.parameters:,}",
        "dtype of the weights": exported.dtype,
        "processor": exported.processor,
    }
    if exported.pooling:
        rows["pooling"] = exported.pooling
        rows["reward token"] = f"`{exported.reward_token}`" if exported.reward_token else "none"
        rows["scores of the last validation"] = (
            f"mean {exported.score_mean:.4g}, standard deviation {exported.score_std:.4g}"
        )
    return f"## Model\n\n{_table(('property', 'value'), rows.items())}"


def _run_sections(run: Run) -> Iterable[str]:
    counted = f"After {run.step:,} steps" if run.step else "At the end of the run"
    if run.metrics:
        rows = ((f"`{name}`", f"{value:.4g}") for name, value in run.metrics.items())
        yield f"## Training\n\n{counted}:\n\n{_table(('metric', 'last value'), rows)}"
    if run.data:
        yield "\n\n".join(_data_parts(run))
    if run.recipe:
        text = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True).strip()
        yield "## Recipe\n\nLocal paths are shortened to `…/name`, secrets are left out."
        yield f"```yaml\n{text}\n```"
    else:
        yield "## Recipe\n\nThe run was started from Python, and its settings are not recorded."


def _data_parts(run: Run) -> Iterable[str]:
    columns = (
        "split",
        "folder",
        "data set",
        "licence",
        "samples",
        "domains",
        "shards",
        "SHA-256 of manifest.json",
    )
    rows = (
        (
            entry["split"],
            entry["folder"],
            entry.get("home") or entry.get("name", ""),
            entry.get("licence", ""),
            f"{entry['samples']:,}",
            _counts(entry.get("domains", {})),
            f"{entry['shards']:,}",
            f"`{entry['sha256']}`" if "sha256" in entry else "no manifest",
        )
        for entry in run.data
    )
    yield f"## Data\n\n{_table(columns, rows)}"
    yield "The manifest holds the checksum of every shard."
    if dropped := {name: count for name, count in run.dropped.items() if count}:
        yield f"Filters left out training records: {_counts(dropped)}."


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    ruler = ["---"] * len(header)
    lines = [
        header,
        ruler,
        *([" ".join(str(cell).split()).replace("|", r"\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
