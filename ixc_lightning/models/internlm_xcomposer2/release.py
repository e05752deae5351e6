# SPDX-License-Identifier: Apache-2.0
"""The released folders: telling them from others, their configuration, and loading them as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ixc_lightning.models.internlm_xcomposer2.configuration import InternLMXComposer2Config
from ixc_lightning.models.internlm_xcomposer2.modeling import (
    InternLMXComposer2ForConditionalGeneration,
    InternLMXComposer2Model,
)
from ixc_lightning.models.internlm_xcomposer2.released_config import (
    ARCHITECTURE,
    native_config,
    settings_of,
)
from ixc_lightning.models.internlm_xcomposer2.released_keys import ADAPTER_RANKS, Entry, entries
from ixc_lightning.models.internlm_xcomposer2.weight_files import WeightFiles
from ixc_lightning.types import InputError

Adapters = Literal["keep", "ignore"]

_ADAPTER = re.compile(r"\.lora_(sft|dpo|web)_[AB]\.")
_BUFFER = re.compile(r"(\.rotary_emb\.(inv_freq|cos_cached|sin_cached)|\.embeddings\.position_ids)$")
_SHOWN_KEYS = 4


def is_released(folder: str | Path) -> bool:
    """Whether a local folder holds a checkpoint in the released layout."""
    path = Path(folder).expanduser() / "config.json"
    if not path.is_file():
        return False
    try:
        return ARCHITECTURE in (json.loads(path.read_text()).get("architectures") or [])
    except (json.JSONDecodeError, AttributeError):
        return False


class ReleasedCheckpoint:
    """A folder in the released layout, checked to be complete.

    Args:
        folder: ``config.json`` beside safetensors or ``.bin`` files. The nested names of the vision tower of
            transformers 4 (``vit.vision_tower.vision_model.…``) and the flat ones of transformers 5 are read.
        adapters: ``keep`` the adapters ``lora_sft``, ``lora_dpo`` and ``lora_web`` if there are some, for the
            modes ``write`` and ``web`` of the causal model, or ``ignore`` them.

    Raises:
        InputError: weights are missing, left over or of another shape than the config says.
    """

    def __init__(self, folder: str | Path, *, adapters: Adapters = "ignore") -> None:
        self.folder = Path(folder).expanduser()
        self.files = WeightFiles(self.folder)
        self._names = {_nested(name): name for name in self.files}
        self.head: Literal["output", "score"] = "score" if "score.weight" in self._names else "output"
        self.config = self._config(adapters)
        self.entries = list(entries(self.config, head=self.head))
        self._check(adapters)

    @property
    def is_reward(self) -> bool:
        """Whether it is the reward model."""
        return self.head == "score"

    def native(self, entry: Entry) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors that one released tensor is here."""
        tensor = self.files.get(self._names[entry.released])
        yield from zip(entry.native, entry.unpack(tensor), strict=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights of the base model and its head, by our names."""
        return {name: tensor for entry in self.entries for name, tensor in self.native(entry)}

    def _config(self, adapters: Adapters) -> InternLMXComposer2Config:
        config = _read_config(self.folder)
        if adapters == "keep":
            names = {found[1] for name in self._names if (found := _ADAPTER.search(name))}
            first = "model.layers.0.attention.wqkv.lora_{}_A.weight"
            config.text_config.adapter_ranks = {
                name: self.files.shape(self._names[first.format(name)])[0]
                for name in ADAPTER_RANKS
                if name in names and first.format(name) in self._names
            } or None
        return config

    def _check(self, adapters: Adapters) -> None:
        expected = {entry.released for entry in self.entries}
        found = {name for name in self._names if not _BUFFER.search(name)}
        faults = {
            "missing": sorted(expected - found),
            "left over": sorted(name for name in found - expected if not _ADAPTER.search(name)),
            "of another shape": sorted(self._misshapen()) if expected <= found else [],
        }
        if adapters == "keep":
            faults["left over"] += sorted(name for name in found - expected if _ADAPTER.search(name))
        if any(faults.values()):
            told = "; ".join(
                f"{len(names)} {fault} ({', '.join(names[:_SHOWN_KEYS])}{', …' * (len(names) > _SHOWN_KEYS)})"
                for fault, names in faults.items()
                if names
            )
            raise InputError(
                f"the weights in {self.folder} are not those that its config.json describes: {told}; "
                "download the folder again, or take the config.json that belongs to them"
            )

    def _misshapen(self) -> Iterator[str]:
        """Released names whose shape is not the packed shape of ours; nothing is read."""
        shapes = native_shapes(self.config)
        for entry in self.entries:
            want = entry.pack([shapes[name] for name in entry.native]).shape
            if tuple(want) != self.files.shape(self._names[entry.released]):
                yield entry.released


def native_shapes(config: InternLMXComposer2Config) -> dict[str, Tensor]:
    """Weights of the base model and of both heads on the meta device: shapes without memory."""
    text = config.text_config
    with torch.device("meta"):
        return {
            **InternLMXComposer2Model(config).state_dict(),
            "lm_head.weight": torch.empty(text.vocab_size, text.hidden_size),
            "score.weight": torch.empty(1, text.hidden_size),
        }


def load_released(
    folder: str | Path,
    *,
    head: bool,
    dtype: torch.dtype,
    attention: str,
    weights: Literal["pretrained", "random"] = "pretrained",
    adapters: Adapters = "ignore",
) -> PreTrainedModel:
    """The model of a released folder, without a conversion on disk; its ``.bin`` files are not copied whole.

    Args:
        folder: a local folder as the release lays it out.
        head: with the language head, else the base model alone.
        dtype: of the weights.
        attention: attention implementation, by its name in transformers.
        weights: ``random`` builds the architecture of ``config.json`` afresh, and needs nothing else.
        adapters: see ``ReleasedCheckpoint``.

    Raises:
        InputError: the folder is not complete, or is that of the reward model where a head is asked for.
    """
    model = InternLMXComposer2ForConditionalGeneration if head else InternLMXComposer2Model
    if weights == "random":
        config = _read_config(Path(folder).expanduser())
        network: PreTrainedModel = model._from_config(config, dtype=dtype, attn_implementation=attention)
        return network
    checkpoint = ReleasedCheckpoint(folder, adapters=adapters)
    state = checkpoint.state_dict()
    if head and checkpoint.is_reward:
        raise InputError(
            f"{folder} holds the reward model, which has no language head: generate with the causal release"
        )
    if not head:
        state = {
            name: tensor for name, tensor in state.items() if name not in ("lm_head.weight", "score.weight")
        }
    prefix = {name: name if name == "lm_head.weight" or not head else f"model.{name}" for name in state}
    network, report = model.from_pretrained(
        None,
        config=checkpoint.config,
        state_dict={prefix[name]: tensor for name, tensor in state.items()},
        dtype=dtype,
        attn_implementation=attention,
        output_loading_info=True,
    )
    assert not any(report.values()), report  # the checkpoint was checked by name and shape
    return network


def reward_settings(folder: str | Path) -> dict[str, Any]:
    """How the released reward model pools, if the folder is one; empty for any other.

    The score is that of the last token. In the full vocabulary it must be the reward token.
    """
    if not is_released(folder):
        return {}
    checkpoint = ReleasedCheckpoint(folder)
    return settings_of(checkpoint.config) if checkpoint.is_reward else {}


def reward_head(folder: str | Path) -> Tensor:
    """The score head (1, D) of a released reward model."""
    return ReleasedCheckpoint(folder).files.get("score.weight")


def _read_config(folder: Path) -> InternLMXComposer2Config:
    return native_config(json.loads((folder / "config.json").read_text()))


def _nested(name: str) -> str:
    """The released name of a weight, where transformers 5 has written it without a level."""
    tower = "vit.vision_tower."
    if name.startswith(tower) and not name.startswith(f"{tower}vision_model."):
        return name.replace(tower, f"{tower}vision_model.", 1)
    return name
