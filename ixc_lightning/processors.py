# SPDX-License-Identifier: Apache-2.0
"""Processors: what turns text and media into a model's inputs, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from ixc_lightning.types import InputError

Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase


def load_processor(source: str) -> Processor:
    """The processor of a hub id or folder, or its tokenizer where the model reads text only.

    Raises:
        InputError: there is none.
    """
    path = str(Path(source).expanduser())
    if source.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise InputError(
            f"there is no folder {source!r}: give one with a model and its processor, or a hub id"
        )
    try:
        return AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"no processor can be loaded from {source!r}: {error}. Give a hub id, or a folder that holds the "
            "model's processor or tokenizer files beside its config.json, as export writes it"
        ) from error
