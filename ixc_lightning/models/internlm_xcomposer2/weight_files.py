# SPDX-License-Identifier: Apache-2.0
"""Folders of weights, read and written piece by piece, so that no more than one piece is ever in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ixc_lightning.types import InputError

LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
"""Index and single file of each format, the preferred one first."""


class WeightFiles:
    """The tensors of a folder by name, safetensors or ``.bin``, in one file or in several with an index.

    ``.bin`` files are unpickled with ``weights_only=True``, and mapped into memory instead of read.

    Raises:
        InputError: the folder holds no weights, lacks a file that its index names, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self.files = self._find()

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors."""
        return iter(self.files)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def get(self, name: str) -> Tensor:
        """One tensor; it stays valid when the files are closed."""
        source = self._file(self.files[name])
        return source.get_tensor(name) if self.files[name].endswith(".safetensors") else source[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, which is not read."""
        source = self._file(self.files[name])
        if self.files[name].endswith(".safetensors"):
            return tuple(source.get_slice(name).get_shape())
        return tuple(source[name].shape)

    def close(self) -> None:
        """Give up the mapped files, whose pages would add up otherwise; ``get`` opens them again."""
        self._open.clear()

    def _find(self) -> dict[str, str]:
        for index, single in LAYOUTS:
            if (self.folder / index).is_file():
                files: dict[str, str] = json.loads((self.folder / index).read_text())["weight_map"]
                if missing := sorted({f for f in files.values() if not (self.folder / f).is_file()}):
                    raise InputError(
                        f"{self.folder / index} names {', '.join(missing)}, which is not there: "
                        "download it again"
                    )
                self._check_index(index, files)
                return files
            if (self.folder / single).is_file():
                source = self._file(single)
                return dict.fromkeys(source.keys(), single)
        names = ", ".join(name for pair in LAYOUTS for name in pair)
        raise InputError(f"{self.folder} holds no weights: none of {names} is there")

    def _check_index(self, index: str, files: dict[str, str]) -> None:
        for file in dict.fromkeys(files.values()):
            named = {name for name, place in files.items() if place == file}
            held = set(self._file(file).keys())
            if named != held:
                name = sorted(named ^ held)[0]
                fault = "lacks" if name in named else "holds beside what the index names"
                raise InputError(
                    f"{self.folder / file} and {index} do not fit together: the file {fault} {name}; "
                    "download both again"
                )
        self.close()

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                if name.endswith(".safetensors"):
                    self._open[name] = safe_open(path, "pt")
                else:
                    self._open[name] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
                raise InputError(
                    f"{path} cannot be read: {error}. It may be cut short: download it again"
                ) from error
        return self._open[name]


class WeightWriter:
    """Writes tensors as safetensors of limited size, with transformers' index where there are several files.

    Args:
        folder: an existing folder.
        shard_bytes: a file is written when it would grow beyond this.
    """

    def __init__(self, folder: str | Path, *, shard_bytes: int) -> None:
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes
        self.names: list[list[str]] = []
        self.total = 0
        self._held: dict[str, Tensor] = {}
        self._size = 0

    def add(self, name: str, tensor: Tensor) -> bool:
        """Take one tensor, which must not change any more; returns whether a file was written before it."""
        size = tensor.numel() * tensor.element_size()
        is_full = bool(self._held) and self._size + size > self.shard_bytes
        if is_full:
            self._write()
        # a copy is apart from the file that the tensor may be mapped from, which can then be closed
        self._held[name] = tensor.clone() if is_full else tensor.contiguous()
        self._size += size
        self.total += size
        return is_full

    def finish(self) -> None:
        """Write what is held, give the files their names, and write the index."""
        self._write()
        count = len(self.names)
        if count == 1:
            self._part(0).rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.names):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _write(self) -> None:
        self.names.append(list(self._held))
        save_file(self._held, self._part(len(self.names) - 1), metadata={"format": "pt"})
        self._held, self._size = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"
