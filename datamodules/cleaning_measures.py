# SPDX-License-Identifier: Apache-2.0
"""How well the lowest scores find the records that are known to be noise.

Noise that was planted is named by the record's ``answer``, see ``sources/planted_noise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score

from ixc_lightning.datamodules.cleaning_verdicts import Names

NOISE = "noise"
"""Field of an ``answer`` that says which noise the record has; null says none."""
UNKNOWN = -1
"""Of a record that does not say whether it is noise."""
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Of the records, lowest first: where precision and recall are measured."""


class NoiseLabels:
    """Which noise every record has, by its number; in memory is a byte per record.

    Args:
        count: number of records.

    Attributes:
        names: of the kinds of noise, the sound ones first.
        codes: of each record, its place in ``names``, or ``UNKNOWN``.
    """

    def __init__(self, count: int) -> None:
        self.names = [""]
        self.codes = np.full(count, UNKNOWN, dtype=np.int8)

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        """Take what the JSON of a record says."""
        answer = record.get("answer")
        if isinstance(answer, dict) and NOISE in answer:
            name = str(answer[NOISE] or "")
            if name not in self.names and len(self.names) <= np.iinfo(np.int8).max:
                self.names.append(name)
            self.codes[number] = self.names.index(name) if name in self.names else UNKNOWN


def measure(
    labels: NoiseLabels,
    rankings: Mapping[str, Float[np.ndarray, " N"]],
    removed: Bool[np.ndarray, " N"],
    *,
    by: str,
    groups: Mapping[str, Names],
) -> dict[str, Any] | None:
    """Return areas under the ROC curve, precision and recall, or None where no noise is known.

    The area is the probability that a noisy record ranks below a sound one, ties counting half.

    Args:
        labels: of the records.
        rankings: numbers by which records may be ranked, low ones as noise, by name; NaN where there is none.
        removed: which records are removed.
        by: the ranking by which they are.
        groups: ways to part the records, such as by modality.
    """
    known = (labels.codes != UNKNOWN) & np.isfinite(rankings[by])
    noise = labels.codes > 0
    if not (known & noise).any() or not (known & ~noise).any():
        return None
    values = rankings[by]

    def area(chosen: Bool[np.ndarray, " N"], ranking: Float[np.ndarray, " N"] = values) -> float | None:
        return _area(noise[chosen & known], ranking[chosen & known])

    every = np.ones_like(known)
    names = labels.names[1:]
    order = np.argsort(values[known], kind="stable")
    return {
        "noise": {name: int((labels.codes[known] == code).sum()) for code, name in enumerate(names, 1)},
        "sound": int((known & ~noise).sum()),
        "ranked_by": by,
        "auc": area(every),
        "auc_by_ranking": {name: area(every, ranking) for name, ranking in rankings.items()},
        "auc_by_kind": {name: area(~noise | (labels.codes == code)) for code, name in enumerate(names, 1)},
        **{
            f"auc_by_{name}": {part: area(parts.codes == code) for code, part in enumerate(parts.names)}
            for name, parts in groups.items()
        },
        "lowest": [
            {"at_most": float(values[known][order[count - 1]]), **_found(labels, known, order[:count])}
            for share in SHARES
            if (count := round(share * int(known.sum())))
        ],
        "removed": _found(labels, known, np.flatnonzero(removed[known])),
    }


def _area(noise: Bool[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> float | None:
    return float(roc_auc_score(noise, -values)) if 0 < noise.sum() < len(noise) else None


def _found(labels: NoiseLabels, known: Bool[np.ndarray, " N"], places: np.ndarray) -> dict[str, Any]:
    """What is found by removing the records at these places among the known ones."""
    codes = labels.codes[known]
    taken = codes[places]
    recall = {
        name: float((taken == code).sum() / (codes == code).sum())
        for code, name in enumerate(labels.names[1:], 1)
        if (codes == code).any()
    }
    return {
        "share": len(taken) / len(codes),
        "removed": len(taken),
        "precision": float((taken > 0).mean()) if len(taken) else None,
        "recall": float((taken > 0).sum() / (codes > 0).sum()),
        "recall_by_kind": recall,
    }
