# SPDX-License-Identifier: Apache-2.0
"""Conversion of whole folders in bounded memory: the release to transformers' layout, and back."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from ixc_lightning.models.internlm_xcomposer2.configuration import InternLMXComposer2Config
from ixc_lightning.models.internlm_xcomposer2.image_processing import InternLMXComposer2ImageProcessor
from ixc_lightning.models.internlm_xcomposer2.processing import InternLMXComposer2Processor
from ixc_lightning.models.internlm_xcomposer2.release import Adapters, ReleasedCheckpoint, is_released
from ixc_lightning.models.internlm_xcomposer2.released_config import released_config, settings_of
from ixc_lightning.models.internlm_xcomposer2.released_keys import Entry, entries
from ixc_lightning.models.internlm_xcomposer2.tokenization import CLOSE_TURN, read_tokenizer
from ixc_lightning.models.internlm_xcomposer2.video_processing import InternLMXComposer2VideoProcessor
from ixc_lightning.models.internlm_xcomposer2.weight_files import WeightFiles, WeightWriter
from ixc_lightning.types import InputError

SETTINGS_FILE = "reward_model.json"
_HEADS = ("lm_head.weight", "score.weight")


def convert_folder(
    source: str | Path, folder: str | Path, *, adapters: Adapters = "ignore", shard_bytes: int = 2 * 10**9
) -> Path:
    """Convert a folder of the release, or one of ours back to it; which way is told by its ``config.json``.

    Tensors are read, rearranged and written one by one; at most one output file is held in memory. Every
    weight is checked by name and shape before the first is written, and the folder appears only when it is
    complete.

    Args:
        source: a local folder.
        folder: what to write; it must not exist, or be empty.
        adapters: whether to keep the adapters of the released causal model.
        shard_bytes: largest size of a written file, unless one tensor alone is larger.

    Raises:
        InputError: the source is incomplete or neither kind of folder, or the target is in use.
    """
    origin, target = Path(source).expanduser(), Path(folder).expanduser().absolute()
    if not (origin / "config.json").is_file():
        raise InputError(
            f"{source} holds no config.json: give a folder with a downloaded or an exported model"
        )
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{folder} is in use: name a folder that does not exist yet")
    write = _write_native if is_released(origin) else _write_released
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        write(origin, unfinished, adapters=adapters, shard_bytes=shard_bytes)
        unfinished.chmod(0o755)
        if target.exists():
            target.rmdir()
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _write_native(origin: Path, folder: Path, *, adapters: Adapters, shard_bytes: int) -> None:
    checkpoint = ReleasedCheckpoint(origin, adapters=adapters)
    prefix = "" if checkpoint.is_reward else "model."
    pairs = (
        (name if name in _HEADS else f"{prefix}{name}", tensor)
        for entry in checkpoint.entries
        for name, tensor in checkpoint.native(entry)
    )
    _write_weights(pairs, checkpoint.files, folder, shard_bytes)
    config = checkpoint.config
    config.architectures = [
        "InternLMXComposer2Model" if checkpoint.is_reward else "InternLMXComposer2ForConditionalGeneration"
    ]
    config.save_pretrained(folder)
    if checkpoint.is_reward:
        settings = {"format": 1, **settings_of(config), "score_mean": 0.0, "score_std": 1.0}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    if (origin / "tokenizer.model").is_file():
        _write_processor(origin, folder, config, is_reward=checkpoint.is_reward)


def _write_processor(
    origin: Path, folder: Path, config: InternLMXComposer2Config, *, is_reward: bool
) -> None:
    """The processor, and for the causal model the tokens at which its generation stops."""
    tokenizer = read_tokenizer(origin)
    tile = config.vision_config.image_size
    InternLMXComposer2Processor(
        InternLMXComposer2ImageProcessor(tile_size=tile),
        tokenizer,
        InternLMXComposer2VideoProcessor(tile_size=tile),
    ).save_pretrained(folder)
    if not is_reward:
        text = config.text_config
        stops = [text.eos_token_id, tokenizer.convert_tokens_to_ids(CLOSE_TURN)]
        GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=stops, pad_token_id=text.pad_token_id
        ).save_pretrained(folder)


def _write_released(origin: Path, folder: Path, *, adapters: Adapters, shard_bytes: int) -> None:
    config = AutoConfig.from_pretrained(origin)
    if not isinstance(config, InternLMXComposer2Config):
        raise InputError(
            f"{origin} holds a model of type {config.model_type}: only InternLM-XComposer2.5 can be "
            "converted, from the release or back to it"
        )
    if adapters == "ignore":
        config.text_config.adapter_ranks = None
    files = WeightFiles(origin)
    head = "score" if "score.weight" in files else "output"
    table = list(entries(config, head=head))
    names = {name.removeprefix("model."): name for name in files}
    _check_complete(origin, table, names)

    def packed() -> Iterator[tuple[str, Tensor]]:
        for entry in table:
            yield entry.released, entry.pack([files.get(names[name]) for name in entry.native])

    _write_weights(packed(), files, folder, shard_bytes)
    (folder / "config.json").write_text(json.dumps(released_config(config), indent=2) + "\n")


def _check_complete(origin: Path, table: list[Entry], names: dict[str, str]) -> None:
    expected = {name for entry in table for name in entry.native}
    adapters = {name for name in names if ".adapters." in name}
    missing, left_over = sorted(expected - names.keys()), sorted(names.keys() - expected - adapters)
    if missing or left_over:
        raise InputError(
            f"the weights in {origin} are not those that its config.json describes: "
            f"{len(missing)} missing ({', '.join(missing[:4])}), {len(left_over)} left over "
            f"({', '.join(left_over[:4])}); a model with adapters of LoRA must be merged first"
        )


def _write_weights(
    pairs: Iterable[tuple[str, Tensor]], files: WeightFiles, folder: Path, shard_bytes: int
) -> None:
    writer = WeightWriter(folder, shard_bytes=shard_bytes)
    for name, tensor in pairs:
        # pages of the source that were read count as memory until the source is closed
        if writer.add(name, tensor):
            files.close()
    writer.finish()
