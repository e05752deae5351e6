# SPDX-License-Identifier: Apache-2.0
"""From the scores of a data set to what is removed, and why. In memory are a few numbers per record."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ixc_lightning.datamodules.contrast import OWN
from ixc_lightning.functional.cleaning import contrasts, lowest_share, robust_z_scores
from ixc_lightning.types import InputError

Part = Literal["domain", "modality"]


class Limits(NamedTuple):
    """Which records are removed: those below any of the limits; null is no limit.

    Attributes:
        threshold: of the score, or of the contrast where there is one.
        quantile: share of all records; the lowest ones of it are removed.
        z_score: of the same, in robust standard deviations from the median of its group, negative below it.
        per: what makes a group.
    """

    threshold: float | None = None
    quantile: float | None = None
    z_score: float | None = None
    per: tuple[Part, ...] = ("domain",)

    def check(self) -> None:
        """Find out before a run that the limits are no limits.

        Raises:
            InputError: none is given, or one is out of its range.
        """
        given = {name: value for name, value in self._asdict().items() if name != "per" and value is not None}
        if not given:
            raise InputError("no limit is given: set threshold, quantile or z_score of the writer")
        for name, value in given.items():
            if not np.isfinite(value):
                raise InputError(f"{name} is {value}; give a finite number")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise InputError(f"quantile is {self.quantile}, but must lie between 0 and 1")
        if set(self.per) - {"domain", "modality"}:
            raise InputError(f"per is {self.per}; name domain, modality, or both")

    def __str__(self) -> str:
        shown = {name: value for name, value in self._asdict().items() if name != "per" and value is not None}
        return ", ".join(f"{name} {value:g}" for name, value in shown.items())


class Names(NamedTuple):
    """A name for each record, kept as numbers.

    Attributes:
        names: all that occur.
        codes: place of each record's own among them; where a record is bad, 0.
    """

    names: list[str]
    codes: Int[np.ndarray, " N"]


@dataclass(frozen=True)
class ScoreTable:
    """What is known about the records by their scores.

    Attributes:
        score: of each record's own answer; NaN where it is bad.
        value: what records are ranked by, ``contrast`` or ``score``; NaN where they are bad.
        is_contrast: which of them.
        is_bad: True where a record could not be read or scored.
        domains: of the records.
        modalities: of the records.
    """

    score: Float[np.ndarray, " N"]
    value: Float[np.ndarray, " N"]
    is_contrast: bool
    is_bad: Bool[np.ndarray, " N"]
    domains: Names
    modalities: Names

    @property
    def value_name(self) -> str:
        """What ``value`` is."""
        return "contrast" if self.is_contrast else "score"

    @classmethod
    def read(cls, rows: Iterable[Mapping[str, Any]], count: int) -> ScoreTable:
        """Return the table of ``count`` records from the rows that scoring wrote.

        Raises:
            InputError: rows of a record are missing.
        """
        numbers, scores, is_own = array("q"), array("d"), array("b")
        is_bad = np.ones(count, dtype=bool)
        columns = {
            name: (dict[str, int](), np.zeros(count, dtype=np.int32)) for name in ("domain", "modality")
        }
        seen = np.zeros(count, dtype=bool)
        for row in rows:
            number = row["row"]
            seen[number] = True
            if row["error"] is not None:
                continue
            is_bad[number] = False
            numbers.append(number)
            scores.append(row["score"])
            is_own.append(cls.is_own(row))
            for name, (codes, column) in columns.items():
                column[number] = codes.setdefault(row[name], len(codes))
        if not seen.all():
            raise InputError(
                f"the table of scores lacks record {int((~seen).argmax()):,} of {count:,}; score again"
            )
        score, value = _values(
            np.fromiter(numbers, dtype=np.int64, count=len(numbers)),
            np.asarray(scores),
            np.asarray(is_own, dtype=bool),
            is_bad,
        )
        domains, modalities = (Names(list(codes) or [""], column) for codes, column in columns.values())
        return cls(score, value, not all(is_own), is_bad, domains, modalities)

    @staticmethod
    def is_own(row: Mapping[str, Any]) -> bool:
        """Whether a row is that of the record's own answer."""
        return bool(row["response"] == OWN)


class Verdicts(NamedTuple):
    """What becomes of each record.

    Attributes:
        z_score: of ``value`` within its group; NaN where a record is bad.
        by_limit: which records are below each limit.
        removed: below any of them.
        kept: neither removed nor bad.
        group: name of each record's group.
        limits: as given.
    """

    z_score: Float[np.ndarray, " N"]
    by_limit: dict[str, Bool[np.ndarray, " N"]]
    removed: Bool[np.ndarray, " N"]
    kept: Bool[np.ndarray, " N"]
    group: Names
    limits: Limits

    def ranked_by(self, table: ScoreTable) -> str:
        """The name of what the lowest records are told by: z-scores if they have a limit."""
        return "z_score" if "z_score" in self.by_limit else table.value_name

    def ranking(self, table: ScoreTable) -> Float[np.ndarray, " N"]:
        """The number by which records are ordered, lowest first."""
        return self.z_score if self.ranked_by(table) == "z_score" else table.value

    def reasons(self, number: int, table: ScoreTable) -> list[str]:
        """Why a record is removed, a sentence for each limit."""
        limits, value = self.limits, f"{table.value_name} {table.value[number]:.4g}"
        texts = {
            "threshold": f"{value} is below {limits.threshold}",
            "quantile": f"{value} is among the lowest {limits.quantile} of all",
            "z_score": f"robust z-score {self.z_score[number]:.4g} in "
            f"{self.group.names[self.group.codes[number]]} is below {limits.z_score}",
        }
        return [texts[name] for name, below in self.by_limit.items() if below[number]]


def judge(table: ScoreTable, limits: Limits) -> Verdicts:
    """Return what becomes of each record.

    Bad records take no part: they are neither kept nor counted in medians and shares.
    """
    good = ~table.is_bad
    group = _groups(table, limits.per)
    values = torch.from_numpy(table.value[good])
    z_scores = np.full(len(good), np.nan)
    z_scores[good] = robust_z_scores(values, torch.from_numpy(group.codes[good])).numpy()
    by_limit = {}
    if limits.threshold is not None:
        by_limit["threshold"] = table.value < limits.threshold
    if limits.quantile is not None:
        by_limit["quantile"] = np.zeros_like(good)
        by_limit["quantile"][good] = lowest_share(values, limits.quantile).numpy()
    if limits.z_score is not None:
        by_limit["z_score"] = z_scores < limits.z_score
    removed = np.any(list(by_limit.values()), axis=0)
    return Verdicts(z_scores, by_limit, removed, good & ~removed, group, limits)


def _groups(table: ScoreTable, per: tuple[Part, ...]) -> Names:
    if not per:
        return Names(["all"], np.zeros(len(table.value), dtype=np.int64))
    parts = [{"domain": table.domains, "modality": table.modalities}[name] for name in dict.fromkeys(per)]
    pairs, codes = np.unique(np.stack([part.codes for part in parts]), axis=1, return_inverse=True)
    names = [", ".join(part.names[code] for part, code in zip(parts, pair, strict=True)) for pair in pairs.T]
    return Names(names, codes.ravel())


def _values(
    numbers: Int[np.ndarray, " R"],
    scores: Float[np.ndarray, " R"],
    is_own: Bool[np.ndarray, " R"],
    is_bad: Bool[np.ndarray, " N"],
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Each record's own score, and its contrast where other answers were scored."""
    score = np.full(len(is_bad), np.nan)
    score[numbers[is_own]] = scores[is_own]
    if is_own.all():
        return score, score
    good, place = np.unique(numbers, return_inverse=True)
    value = np.full(len(is_bad), np.nan)
    value[good] = contrasts(
        torch.from_numpy(scores), torch.from_numpy(place), torch.from_numpy(is_own)
    ).numpy()
    return score, value
