# SPDX-License-Identifier: Apache-2.0
"""Folders that hold adapters apart from their base model, in the layout of PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ixc_lightning.models.adapters import LoRA, adapter_weights, inject, peft
from ixc_lightning.models.quantisation import Quantisation
from ixc_lightning.types import InputError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
EXTRA_FILE = "extra.safetensors"
"""Further tensors beside adapters: a reward head, say."""
BASE_FILE = "base_settings.json"
"""How the base model was changed before it was adapted; PEFT's config has no place for it."""
PREFIX = "base_model.model."
"""Before every name in PEFT's files."""


class SavedAdapter(NamedTuple):
    """A folder that holds adapters.

    Attributes:
        folder: hub id or folder.
        base: hub id or folder of the base model.
        config: PEFT's own.
        quantisation: of the base that the adapters were trained on.
    """

    folder: str
    base: str
    config: Any
    quantisation: Quantisation | None


def saved_adapter(source: str, *, beside: LoRA | None) -> SavedAdapter | None:
    """The adapters that a hub id or folder holds; None if it holds a model.

    Args:
        source: hub id or folder.
        beside: new adapters that are asked for, if any.

    Raises:
        InputError: they are of a kind that is not supported, or name no base model, or new ones are asked for
            as well.
    """
    path = _find(source, CONFIG_FILE)
    if path is None:
        return None
    settings = json.loads(Path(path).read_text())
    kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    if kind != "LORA" or settings.get("use_dora") or settings.get("modules_to_save"):
        raise InputError(
            f"{source}: {CONFIG_FILE} describes another kind of adapter than plain LoRA ({kind}); merge it "
            "into its base model with PEFT's merge_and_unload, and give the folder of that"
        )
    if not base:
        raise InputError(
            f"{source}: {CONFIG_FILE} names no base model; write its hub id or folder there, as "
            "base_model_name_or_path"
        )
    if beside is not None:
        raise InputError(
            f"{source} holds adapters already, and adapter asks for new ones: leave adapter out to train "
            "those of the folder, or export them merged and start from that folder"
        )
    config = peft().LoraConfig.from_pretrained(str(Path(path).parent))
    return SavedAdapter(source, base, config, _quantisation(source))


def load_adapter(base: PreTrainedModel, saved: SavedAdapter, *, name: str) -> None:
    """Add the adapters of a folder, with their weights.

    Args:
        base: the network without its language head.
        saved: the folder.
        name: that the adapters get.

    Raises:
        InputError: the folder holds no weights, or other ones than its config describes.
    """
    path = _find(saved.folder, WEIGHTS_FILE)
    if path is None:
        raise InputError(
            f"{saved.folder} holds {CONFIG_FILE} but no {WEIGHTS_FILE}: export the adapters again"
        )
    kind = type(base).__name__
    try:
        inject(base, saved.config, name=name)
    except ValueError as error:
        raise InputError(f"the adapters in {saved.folder} do not fit {kind}: {error}") from error
    own = adapter_weights(base, name)
    # of a model with a language head every name begins with that of the part without it
    head = f"{base.base_model_prefix}."
    given = {key.removeprefix(PREFIX): weight for key, weight in load_file(path).items()}
    given = {key if key in own else key.removeprefix(head): weight for key, weight in given.items()}
    wrong = sorted(own.keys() ^ given.keys())
    wrong += [key for key in own.keys() & given.keys() if own[key].shape != given[key].shape]
    if wrong:
        raise InputError(
            f"{saved.folder}/{WEIGHTS_FILE} does not fit {kind} with its {CONFIG_FILE}: {len(wrong)} weights "
            f"are missing, left over or of another shape (first: {wrong[0]}); is {saved.base} the model that "
            "they were trained on?"
        )
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(given[key])


def save_adapter(
    network: PreTrainedModel,
    base: PreTrainedModel,
    folder: str | Path,
    *,
    name: str,
    quantisation: Quantisation | None,
    extra: Mapping[str, Tensor],
) -> None:
    """Write adapters apart from their base model, as PEFT and transformers load them.

    Args:
        network: the network as a whole; the names in the files are those that its layers have in it.
        base: the network without its language head, or the same.
        folder: made if it does not exist.
        name: of the adapters.
        quantisation: of the base, for ``BASE_FILE``.
        extra: further tensors, for ``EXTRA_FILE``.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    config = base.peft_config[name]
    settings = config.to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    settings |= {"base_model_name_or_path": network.config._name_or_path, "inference_mode": True}
    type(config)(**settings).save_pretrained(str(target))
    head = "" if network is base else f"{base.base_model_prefix}."
    weights = {f"{PREFIX}{head}{key}": weight for key, weight in adapter_weights(base, name).items()}
    _save(weights, target / WEIGHTS_FILE)
    if extra:
        _save(extra, target / EXTRA_FILE)
    if quantisation is not None:
        (target / BASE_FILE).write_text(json.dumps({"quantisation": quantisation}, indent=2) + "\n")


def _quantisation(source: str) -> Quantisation | None:
    """What the adapters' base was quantised to when they were saved."""
    path = _find(source, BASE_FILE)
    kind = None if path is None else json.loads(Path(path).read_text()).get("quantisation")
    if kind not in (None, *get_args(Quantisation)):
        raise InputError(
            f"{source}/{BASE_FILE}: quantisation is {kind!r}, which this version does not know; it knows "
            f"{', '.join(get_args(Quantisation))}"
        )
    return kind


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def _find(source: str, name: str) -> str | None:
    """Local path of a file of a hub id or folder; None where it has no such file."""
    try:
        return cached_file(str(Path(source).expanduser()), name)
    except OSError:
        return None
