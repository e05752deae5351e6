# SPDX-License-Identifier: Apache-2.0
"""To Hugging Face folders: weights, configuration, processor and card, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ixc_lightning.models.backbone import Backbone
from ixc_lightning.models.reward_model import RewardModel
from ixc_lightning.models.sequence_classification import save_classifier, why_no_classifier
from ixc_lightning.processors import Processor, load_processor
from ixc_lightning.publishing.card import FILE, Evaluation, base_model_of, make_card
from ixc_lightning.publishing.hub import check_push, push_folder
from ixc_lightning.publishing.loading_code import Exported
from ixc_lightning.publishing.runs import Run
from ixc_lightning.types import InputError

CONFIGS = ("config.json", "adapter_config.json")
"""A folder with one of them holds a model, or what was trained on top of one."""


@runtime_checkable
class Saveable(Protocol):
    """A model that writes itself as transformers does: a ``Backbone`` or a ``RewardModel``."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and configuration."""


def export_folder(
    model: Saveable,
    processor: str,
    folder: str | Path,
    *,
    run: Run | None = None,
    evaluations: Sequence[Evaluation] = (),
    push_to_hub: str | None = None,
    private: bool = True,
) -> Path:
    """Write a model, its processor and its card as one Hugging Face folder, and give its path.

    The folder appears under its name only when it is complete; an exported model that stood there before is
    replaced. A text reward model with ``pooling: last`` is written so that transformers loads it as
    ``AutoModelForSequenceClassification`` too, where that gives the same scores; the card says whether.

    Args:
        model: what to write; a sharded one inside ``whole``.
        processor: hub id or folder of the processor that the model was trained with.
        folder: where to write; ``~`` is expanded.
        run: that trained the model, for the card.
        evaluations: figures on benchmarks, for the card.
        push_to_hub: repository of the hub to upload the folder to, as ``push_folder`` does; null is none.
        private: whether a repository that is made for it is private.

    Raises:
        InputError: there is something else of that name, the processor cannot be loaded, or the hub refuses
            the folder, which is complete then.
    """
    check_target(folder)
    if push_to_hub is not None:
        check_push(push_to_hub)
    target = Path(folder).expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    reader = load_processor(processor)
    base_model = base_model_of(processor)  # before the folder that it may be read from is replaced
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        exported = _save(model, reader, unfinished, name=push_to_hub or ".")
        reader.save_pretrained(unfinished)
        if exported is not None:
            name = (push_to_hub or target.name).rpartition("/")[-1]
            card = make_card(exported, name=name, run=run, base_model=base_model, evaluations=evaluations)
            card.save(unfinished / FILE)
        unfinished.chmod(0o755)
        _replace(target, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if push_to_hub is not None:
        push_folder(target, push_to_hub, private=private)
    return target


def check_target(folder: str | Path) -> None:
    """Make sure that nothing but a model is replaced by an export.

    Raises:
        InputError: there is a file of that name, or a folder that holds something else.
    """
    target = Path(folder).expanduser()
    if target.is_file():
        raise InputError(f"{folder} is a file: name a folder to export to")
    is_model = any((target / name).is_file() for name in CONFIGS)
    if target.is_dir() and any(target.iterdir()) and not is_model:
        raise InputError(
            f"{folder} holds something that is no exported model, and would be replaced: name another "
            "folder, or empty this one"
        )


def _save(model: Saveable, processor: Processor, folder: Path, *, name: str) -> Exported | None:
    """Write the model, and say what it is for its card; nothing is known of other kinds of models."""
    classifier = reason = None
    if isinstance(model, RewardModel):
        reason = why_no_classifier(model, processor)
        if reason is None:
            classifier = save_classifier(model, processor, folder)
    if classifier is None:
        model.save_pretrained(folder)
    if not isinstance(model, Backbone | RewardModel):
        return None
    backbone = model if isinstance(model, Backbone) else model.backbone
    exported = Exported(
        role="policy",
        folder=name,
        architecture=classifier or type(backbone.model).__name__,
        is_multimodal=backbone.is_multimodal,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        dtype=str(backbone.model.dtype).removeprefix("torch."),
        processor=type(processor).__name__,
        needs_package=type(backbone.config).__module__.startswith("ixc_lightning."),
    )
    if not isinstance(model, RewardModel):
        return exported
    token = model.reward_token_id
    tokenizer = getattr(processor, "tokenizer", processor)
    return exported._replace(
        role="reward",
        pooling=model.pooling,
        reward_token=None if token is None else tokenizer.convert_ids_to_tokens(token),
        score_mean=model.score_mean.item(),
        score_std=model.score_std.item(),
        classifier=classifier,
        why_no_classifier=reason,
    )


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Give the first rank every parameter of a sharded model in full, on the CPU, as long as the block lasts.

    All ranks must enter together. The parameters are the master weights, in the dtype that they are trained
    in. A model that is not sharded stays as it is.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root may still be gathered, in the dtype of the computation
    shards = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter.data, DTensor)
    ]
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    full: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for _, _, parameter in shards:
        if parameter not in full:
            shard = parameter.detach()
            assert isinstance(shard, DTensor)
            tensor = shard.full_tensor()  # by all ranks
            full[parameter] = nn.Parameter(tensor.cpu(), requires_grad=False) if is_first else parameter
    try:
        for module, name, parameter in shards:
            setattr(module, name, full[parameter])
        yield
    finally:
        for module, name, parameter in shards:
            setattr(module, name, parameter)


def _replace(target: Path, new: Path) -> None:
    """Rename ``new`` to ``target``, moving aside what is there: a folder cannot take a full one's name."""
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        target.rename(old / target.name)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
