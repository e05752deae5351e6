# SPDX-License-Identifier: Apache-2.0
"""Loading a transformers network from a folder or the hub, and refusing what would load only in part."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from ixc_lightning.models.fresh_weights import draw, new_seed
from ixc_lightning.models.internlm_xcomposer2.release import is_released, load_released
from ixc_lightning.types import InputError

DTYPES = ("float32", "bfloat16", "float16")
SHOWN_KEYS = 4

Weights = Literal["pretrained", "random"]

_come_later: ContextVar[bool] = ContextVar("weights_come_later", default=False)


@dataclass(frozen=True)
class LateWeights:
    """What is to be loaded into a network that was built on the meta device.

    Attributes:
        source: where from.
        plain: the network as it was built, without adapters and quantisation, on the meta device for good.
        seed: of random weights; None loads those of the source.
    """

    source: str
    plain: PreTrainedModel
    seed: int | None


@contextmanager
def weights_later() -> Iterator[None]:
    """Build networks inside without their weights, on the meta device, to be sharded before they are loaded.

    Heads and adapters are there at once. ``late_weights.load_late`` loads the rest.
    """
    token = _come_later.set(True)
    try:
        yield
    finally:
        _come_later.reset(token)


def late_weights_of(network: PreTrainedModel) -> LateWeights | None:
    """What is still to be loaded into a network; None once it is."""
    return getattr(network, "late_weights", None)


def load_network(
    source: str,
    *,
    weights: Weights,
    head: bool,
    dtype: str,
    attention: str,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Build the network that ``source`` describes and load its weights completely, or ``weights_later``.

    Args:
        source: hub id, or a folder in transformers' layout or in that of the released InternLM-XComposer2.5.
        weights: ``pretrained`` loads the weights beside the config; ``random`` makes fresh ones.
        head: with the language head, else the base model alone.
        dtype: one of ``DTYPES``.
        attention: a name that transformers knows, registered ones included.
        trust_remote_code: whether code that comes with the weights may run.

    Raises:
        InputError: if there is no such source, an option is unknown, or weights are missing, left over or of
            another shape.
    """
    folder = os.path.expanduser(source)
    _check_options(source, dtype, attention)
    device, is_late = torch.get_default_device(), _come_later.get()
    if is_late or weights == "random":
        with torch.device("meta"):
            network = _build(source, folder, head, dtype, attention, trust_remote_code)
        if is_late:
            seed = new_seed() if weights == "random" else None
            network.late_weights = LateWeights(folder, copy.deepcopy(network), seed)
        elif device.type != "meta":
            draw(network, seed=new_seed(), device=device)
        return network.eval()
    if is_released(folder):
        return load_released(folder, head=head, dtype=getattr(torch, dtype), attention=attention)
    with _refusing(source):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        # mismatched shapes are reported with all other faults instead of raising for themselves
        with without_load_report():
            network, report = _auto_class(config, head).from_pretrained(
                folder,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **_options(dtype, attention, trust_remote_code),
            )
    check_report(source, network, report)
    return network


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the config belongs to a vision-language model rather than to a text model."""
    remote = getattr(config, "auto_map", None) or {}
    return (
        type(config) in AutoModelForImageTextToText._model_mapping or "AutoModelForImageTextToText" in remote
    )


def _build(
    source: str, folder: str, head: bool, dtype: str, attention: str, trust_remote_code: bool
) -> PreTrainedModel:
    """The network as its config describes it, where torch makes tensors now."""
    if is_released(folder):
        kind = getattr(torch, dtype)
        return load_released(folder, head=head, dtype=kind, attention=attention, weights="random")
    with _refusing(source):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        network = _auto_class(config, head).from_config(
            config, **_options(dtype, attention, trust_remote_code)
        )
    if network.can_generate():
        with suppress(OSError):  # the source has none
            network.generation_config = GenerationConfig.from_pretrained(folder)
    return network


def _options(dtype: str, attention: str, trust_remote_code: bool) -> dict[str, Any]:
    return {
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention,
        "trust_remote_code": trust_remote_code,
    }


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    """Say of all that transformers raises which source it is about."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InputError(f"cannot load a model from {source!r}: {error}") from error


def _check_options(source: str, dtype: str, attention: str) -> None:
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") > 1
    if looks_like_path and not os.path.isdir(os.path.expanduser(source)):
        raise InputError(
            f"there is no folder {source!r}: give a folder with config.json, or the id of a hub repository"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    names = ["eager", *AttentionInterface().keys()]
    if attention not in names and "/" not in attention:  # a slash names a kernel on the hub
        raise InputError(f"attention must be one of {', '.join(names)}, not {attention!r}")


def _auto_class(config: PretrainedConfig, head: bool) -> Any:
    if not head:
        return AutoModel
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from warning of leftovers that are all right; what is not is raised here."""
    logger = logging.getLogger(PreTrainedModel.__module__)

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def check_report(source: str, network: PreTrainedModel, report: Mapping[str, Iterable[Any]]) -> None:
    """Raise unless every weight was loaded, and every key left over belongs to another part: a head, say."""
    trees = {_tree(name) for name in network.state_dict()}
    faults = {
        "missing": sorted(report["missing_keys"]),
        "of another shape": sorted(name for name, *_ in report["mismatched_keys"]),
        "left over": sorted(
            name for name in report["unexpected_keys"] if _tree(name) in trees and not _is_head(name)
        ),
    }
    if not any(faults.values()):
        return
    found = "; ".join(f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names)
    hint = "its weights belong to another architecture than its config.json describes"
    if faults["missing"] == ["lm_head.weight"]:
        hint = "it holds no language head, which generation needs: use head=False, or export it with its head"
    name = type(network).__name__
    raise InputError(f"the weights in {source!r} do not fit {name}: {found}; {hint}")


def _tree(name: str) -> str:
    """The top-level part that a weight belongs to, whether or not the base model is called ``model``."""
    return name.removeprefix("model.").split(".")[0]


def _is_head(name: str) -> bool:
    """Whether a weight is the language head; checkpoints often keep it inside ``language_model``."""
    return "lm_head" in name.split(".")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_KEYS]) + (", …" if len(names) > SHOWN_KEYS else "")
