# SPDX-License-Identifier: Apache-2.0
"""What is known of the run that made a model, as plain data that a checkpoint can carry."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ixc_lightning import __version__
from ixc_lightning.publishing.redaction import public

KEY = "run"
"""Where a checkpoint keeps it."""
PACKAGES = ("torch", "transformers", "lightning", "tokenizers", "peft")
OF_THE_MACHINE = ("needs", "export", "ckpt_path", "config", "weights_only")
"""Settings at the top of a recipe that say where things lie, and nothing about the model."""
LOGGING = ("logger", "default_root_dir")
MANIFEST, REPORT = "manifest.json", "conversion.json"
"""What the writer of shards, and a converter, leave in their folders."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Run:
    """A training run, as its model's card tells it. Nothing in it names a secret or a local path.

    Attributes:
        recipe: the settings that can be given to ``fit`` as they are, apart from what was left out.
        data: one entry for each folder of shards, see ``describe_shards``.
        dropped: training records that each filter left out.
        reading: how the data were read: ``video_frames``, ``response_suffix``, ``max_tokens``.
        metrics: the last value of everything that was logged and is a number.
        step: optimiser steps, or iterations, that were made.
        versions: of the packages that took part.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Run | None:
        """Return the run that a checkpoint tells of, or None if it tells of none."""
        return cls(**checkpoint[KEY]) if KEY in checkpoint else None

    def to_checkpoint(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return asdict(self)


def public_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run without those of the machine, without logging, secrets and local paths."""
    recipe = {name: value for name, value in settings.items() if name not in OF_THE_MACHINE}
    if recipe.get("trainer"):
        trainer = {name: value for name, value in recipe["trainer"].items() if name not in LOGGING}
        callbacks = trainer.get("callbacks") or []
        trainer["callbacks"] = [one for one in callbacks if not one["class_path"].endswith("ProgressBar")]
        recipe["trainer"] = {name: value for name, value in trainer.items() if value != []}
    return public(recipe)


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what was logged as floats, in the order of the names, without what is no number."""
    values = {name: float(value) for name, value in sorted(metrics.items())}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of those that it computes with."""
    found = {"python": platform.python_version(), "ixc_lightning": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_shards(split: str, counts: Mapping[Path | str, int]) -> list[dict[str, Any]]:
    """Return where the records of a split come from, folder by folder.

    What a folder holds is read from its manifest, whose checksum covers the checksums of all its shards, and
    what was converted from the report of the converter, in the folder or above it. Of shards at an address
    only the address and the counts are told.

    Args:
        split: ``train`` or ``val``, say.
        counts: number of records of every shard, by its path or URL.

    Returns:
        For each folder ``split``, ``folder``, ``shards`` and ``samples``; and, where they are known,
        ``domains`` and ``modalities`` (number of samples of each), ``sha256`` (of the manifest), ``name``,
        ``home`` and ``licence`` (of the data set that was converted).
    """
    folders: dict[Path | str, list[int]] = {}
    for shard, count in counts.items():
        folder = shard.parent if isinstance(shard, Path) else shard.partition("?")[0].rpartition("/")[0]
        folders.setdefault(folder, []).append(int(count))
    return [
        {"split": split, **_describe(folder), "shards": len(own), "samples": sum(own)}
        for folder, own in folders.items()
    ]


def hub_datasets(data: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the data sets that come from the hub."""
    homes = dict.fromkeys(entry.get("home", "") for entry in data)
    return [home for home in homes if HUB_ID.fullmatch(home)]


def _describe(folder: Path | str) -> dict[str, Any]:
    if isinstance(folder, str):
        return {"folder": public(folder)}
    told: dict[str, Any] = {"folder": "/".join(folder.absolute().parts[-2:]).lstrip("/")}
    data = _read(folder / MANIFEST)
    if data is not None:
        manifest = _json(data)
        told |= {name: manifest[name] for name in ("domains", "modalities") if name in manifest}
        told["sha256"] = hashlib.sha256(data).hexdigest()
    for above in (folder, *folder.absolute().parents[:2]):
        if (data := _read(above / REPORT)) is not None:
            report = _json(data)
            return told | {name: public(report.get(name, "")) for name in ("name", "home", "licence")}
    return told


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # a card can do without it; who reads the shards has checked that they are there
        return None


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
