# SPDX-License-Identifier: Apache-2.0
"""Small sources written by hand in published schemas, and what converters made of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import Record


def picture(colour: str, form: str = "JPEG", size: tuple[int, int] = (8, 6)) -> bytes:
    """The bytes of a small picture."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


def write_jsonl(path: Path, *rows: Any) -> str:
    """Write rows as JSON Lines, and return the path as converters take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, *rows: dict[str, Any]) -> str:
    """Write rows as Parquet, and return the path as converters take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


def records(out: Path, kind: str = "preference") -> list[Record]:
    """Every record below a folder, in the order of the rows that they are from."""
    dataset = ShardDataset([str(path) for path in sorted(Path(out).rglob("*.tar"))], kind=kind)
    return sorted((dataset[index] for index in range(len(dataset))), key=lambda record: record.key)


def said(role: str, *parts: str | tuple[str, str]) -> dict[str, Any]:
    """A message as a record holds it; a pair is a medium by type and file."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": part[0], "file": part[1]}
        for part in parts
    ]
    return {"role": role, "content": content}


def asked(*parts: str | tuple[str, str]) -> tuple[dict[str, Any], ...]:
    """A prompt of one message."""
    return (said("user", *parts),)


def answered(text: str) -> tuple[dict[str, Any], ...]:
    """A response of one message."""
    return (said("assistant", text),)


def shown(record: Record) -> tuple[Any, ...]:
    """Prompt, chosen and rejected response of a record, and its domain."""
    return record.messages, record.chosen, record.rejected, record.domain
