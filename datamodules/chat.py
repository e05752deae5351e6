# SPDX-License-Identifier: Apache-2.0
"""Conversations of records as the chat completions of OpenAI, and of all servers like it, take them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from PIL import Image

from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.types import Record

ChatMessages: TypeAlias = list[dict[str, Any]]


def chat_messages(
    record: Record, messages: Iterable[Mapping[str, Any]], *, video_frames: int
) -> ChatMessages:
    """Messages of a record with their media inside, as data URLs of base64.

    Pictures keep their bytes. A clip becomes its sampled frames as PNG, behind a line of text that says how
    many they are: chat completions know no clips.

    Args:
        record: holds the media, and names the place in messages.
        messages: turns of it.
        video_frames: frames taken from each clip, evenly spaced.

    Raises:
        InputError: naming the record and the file, if a picture or a clip cannot be decoded.
    """
    return [
        {"role": turn["role"], "content": list(_parts(turn["content"], record, video_frames))}
        for turn in messages
    ]


def _parts(content: Iterable[Mapping[str, Any]], record: Record, frames: int) -> Iterator[dict[str, Any]]:
    for part in content:
        if part["type"] == "text":
            yield {"type": "text", "text": part["text"]}
            continue
        data, where = record.media[part["file"]], f"{record.shard}:{record.key}.{part['file']}"
        if part["type"] == "image":
            decode_image(data, where=where)  # whatever is wrong with it is said here, not by a server
            with Image.open(io.BytesIO(data)) as image:
                yield _picture(data, Image.MIME[image.format or ""])
            continue
        clip = decode_video(data, frames=frames, where=where)
        yield {"type": "text", "text": f"[{len(clip.frames)} frames of a clip, in order:]"}
        for frame in clip.frames:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "PNG")
            yield _picture(stream.getvalue(), "image/png")


def _picture(data: bytes, kind: str) -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
