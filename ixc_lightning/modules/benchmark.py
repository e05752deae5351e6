# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a trained reward model on a reward benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from ixc_lightning.metrics.benchmark import Benchmark, ScoredItem
from ixc_lightning.metrics.report import Report, make_report, markdown
from ixc_lightning.metrics.response_scores import ResponseScores
from ixc_lightning.metrics.result_files import write_results, write_whole
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.scoring import check_suffix, score_responses
from ixc_lightning.types import CandidateBatch, InputError


@dataclass
class TrainedModel:
    """A trained reward model that is still to be loaded.

    Args:
        source: a folder that training exported, or a hub id.
        dtype: of the backbone's weights; the head is always float32.
        attention: attention implementation, by its name in transformers.
    """

    source: str
    dtype: str = "float32"
    attention: str = "sdpa"

    def load(self) -> RewardModel:
        """The model in evaluation mode.

        Raises:
            InputError: the source is no reward model, whose head would be noise.
        """
        return RewardModel.from_pretrained(self.source, dtype=self.dtype, attention=self.attention)


class BenchmarkModule(L.LightningModule):
    """Scores every response of a benchmark once, each picture encoded once, and writes figures and files.

    It takes a ``BenchmarkDataModule``. Every rank holds the whole model and scores its share of the items. At
    the end the first rank writes, below ``folder``, the scores of every item (``NAME.jsonl``, and
    ``NAME.parquet`` where pyarrow is installed), and a page of tables for a model card (``NAME.md``), which
    it prints too.

    Logs every figure as ``test/NAME``: ``test/official_overall``, ``test/paper_overall``, …

    Args:
        model: the trained reward model.
        benchmark: the figures to compute.
        name: of the model, in tables and files; its source if null.
        folder: where to write; null is the log folder, or the present one without a logger.
        responses_per_pass: most responses that go through the model at once.
        resamples: bootstrap resamples for the intervals.
        seed: of the resamples.
    """

    judge: RewardModel | None

    def __init__(
        self,
        model: TrainedModel,
        benchmark: Benchmark,
        *,
        name: str | None = None,
        folder: str | None = None,
        responses_per_pass: int = 16,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.benchmark = benchmark
        self.name = name or model.source
        self.folder = folder
        self.responses_per_pass = responses_per_pass
        self.resamples = resamples
        self.seed = seed
        self.judge = None
        self.scores = ResponseScores()

    def configure_model(self) -> None:
        """Load the model, once."""
        if self.judge is None:
            self.judge = self.model.load()

    def setup(self, stage: str) -> None:
        """Refuse settings that cannot be.

        Raises:
            InputError: naming the setting.
        """
        for name in ("responses_per_pass", "resamples"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"model.{name} is {value}, but must be at least 1")

    def on_test_start(self) -> None:
        """Make sure that the responses end with what the model scores."""
        assert self.judge is not None
        encoder = self.trainer.datamodule.encoder
        check_suffix(
            self.judge, encoder.tokenizer(encoder.response_suffix, add_special_tokens=False)["input_ids"]
        )
        self.scores.reset()

    def test_step(self, batch: CandidateBatch, batch_idx: int) -> None:
        """Keep the scores of the batch's responses."""
        assert self.judge is not None
        for _, key, file, reason in batch.bad:
            rank_zero_warn(f"{file}, row {key} is left out: {reason}")
        scores = score_responses(
            self.judge, batch.prompts, batch.responses, batch.prompt_index, size=self.responses_per_pass
        )
        item = torch.tensor(batch.rows, device=scores.device)[batch.prompt_index]
        _, counts = batch.prompt_index.unique_consecutive(return_counts=True)
        place = torch.cat([torch.arange(int(count), device=scores.device) for count in counts])
        self.scores.update(scores, item, place, batch.real[batch.prompt_index])

    def on_test_epoch_end(self) -> None:
        """Gather the scores, compute the figures, write the files."""
        items = self.scored_items()
        total = len(self.trainer.datamodule.items)
        if not items:
            raise InputError(f"none of the {total:,} items could be scored; the warnings above say why")
        report = make_report(
            self.benchmark,
            items,
            model=self.name,
            left_out=total - len(items),
            resamples=self.resamples,
            seed=self.seed,
        )
        self.log_dict(
            {f"test/{name}": figure.value for name, figure in report.figures.items()}, rank_zero_only=True
        )
        if self.trainer.is_global_zero:
            self.write(report, items)

    def scored_items(self) -> list[ScoredItem]:
        """All items that have scores, of all ranks, in the order of the benchmark."""
        scores, places = self.scores.compute()
        found: dict[int, list[float]] = {}
        for (number, _), score in zip(places.tolist(), scores.tolist(), strict=True):
            found.setdefault(number, []).append(score)
        items = self.trainer.datamodule.items
        return [
            ScoredItem(
                row=number,
                id=items[number].id,
                group=items[number].group,
                subgroup=items[number].subgroup,
                digest=items[number].digest,
                chosen=tuple(values[: len(items[number].chosen)]),
                rejected=tuple(values[len(items[number].chosen) :]),
            )
            for number, values in found.items()
        ]

    def write(self, report: Report, items: list[ScoredItem]) -> None:
        """Write scores and tables, and print the tables."""
        folder = Path(self.folder or self.trainer.log_dir or ".").expanduser()
        written = write_results(folder, self.benchmark, report.model, items)
        page = markdown(report)
        written.append(
            write_whole(folder / f"{self.benchmark.name}.md", lambda file: file.write_text(page, "utf-8"))
        )
        print(f"\n{page}\nwritten: {', '.join(map(str, written))}")
