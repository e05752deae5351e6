# SPDX-License-Identifier: Apache-2.0
"""Processors: what turns text and media into a model's inputs, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from ixc_lightning.types import InputError

RELEASED = "InternLMXComposer2ForCausalLM"
"""What the released models call themselves in their config.json."""

Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase


def load_processor(source: str) -> Processor:
    """The processor of a hub id or folder, or its tokenizer where the model reads text only.

    Code that comes with it is not run, and nobody is asked whether it may be.

    Raises:
        InputError: there is none.
    """
    path = str(Path(source).expanduser())
    if source.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise InputError(
            f"there is no folder {source!r}: give one with a model and its processor, or a hub id"
        )
    try:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"no processor can be loaded from {source!r}: {error}. {_advice(Path(path))}"
        ) from error


def _advice(folder: Path) -> str:
    config = folder / "config.json"
    if config.is_file() and RELEASED in config.read_text(encoding="utf-8", errors="replace"):
        return (
            "This is the released layout of InternLM-XComposer2.5: python -m ixc_lightning "
            "convert-checkpoint makes a folder of it that holds the processor too"
        )
    return (
        "Give a hub id, or a folder that holds the model's processor or tokenizer files beside its "
        "config.json, as export writes it"
    )
