# SPDX-License-Identifier: Apache-2.0
"""The media that a request names, as bytes, within the limits of one request."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
from PIL import Image

from ixc_lightning.datamodules.given_media import picture_bytes
from ixc_lightning.datamodules.media import IMAGE_FORMATS, MAX_IMAGE_PIXELS, VIDEO_FORMATS
from ixc_lightning.types import InputError

KINDS = ("image", "video")


class RequestMedia:
    """Reads what one request names, and counts it.

    Args:
        max_media: most pictures and clips.
        max_bytes: most bytes of all of them together.
        max_pixels: most pixels of all pictures together; they are counted before any is decoded.
        max_clip_pixels: most pixels of all frames of all clips together, those that are only skipped too.
        folder: where ``path`` begins and may not leave; None refuses every path.
        allow_urls: whether http(s) URLs are fetched.
    """

    def __init__(
        self,
        *,
        max_media: int,
        max_bytes: int,
        max_pixels: int,
        max_clip_pixels: int,
        folder: Path | None,
        allow_urls: bool,
    ) -> None:
        self.max_media = max_media
        self.max_bytes = max_bytes
        self.left = {"image": max_pixels, "video": max_clip_pixels}
        self.folder = folder
        self.allow_urls = allow_urls
        self.count = self.bytes = 0

    def files(self, sources: Sequence[str], kind: str, where: str) -> list[bytes]:
        """The files of a list, in its order.

        Raises:
            InputError: naming the place in ``where``, if one cannot be read or goes beyond a limit.
        """
        return [
            self._checked(self._named(one, f"{where}[{n}]"), kind, f"{where}[{n}]")
            for n, one in enumerate(sources)
        ]

    def turns(self, turns: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        """The turns, with the bytes of a file in each part that names its own.

        Raises:
            InputError: as ``files``.
        """
        return [
            turn
            if isinstance(turn["content"], str)
            else {
                **turn,
                "content": [
                    self._part(part, f"{where}[{t}].content[{p}]") for p, part in enumerate(turn["content"])
                ],
            }
            for t, turn in enumerate(turns)
        ]

    def _part(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        kind = part["type"]
        names = [name for name in (kind, "url", "path") if name in part]
        if kind not in KINDS or not names:
            return part
        if len(names) > 1:
            raise InputError(f"{where}: has {' and '.join(names)}; give one of them")
        (name,) = names
        where = f"{where}.{name}"
        if name == "path":
            data = self._file(part[name], where)
        elif name == "url":
            data = self._fetched(part[name], where)
        else:
            data = self._named(part[name], where)
        return {"type": kind, kind: self._checked(data, kind, where)}

    def _named(self, source: str, where: str) -> bytes:
        if source[:5].lower() == "data:":
            head, comma, source = source.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise InputError(f"{where}: is no data URL in base64; write data:image/png;base64,…")
        elif "://" in source[:20]:
            return self._fetched(source, where)
        try:
            return base64.b64decode(source, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(
                f"{where}: is not base64 ({error}); encode the bytes of the file, without line breaks"
            ) from None

    def _fetched(self, url: str, where: str) -> bytes:
        if not self.allow_urls:
            raise InputError(f"{where}: this service fetches no URLs; send the file in base64")
        if not url.lower().startswith(("http://", "https://")):
            raise InputError(f"{where}: is no http(s) URL; give one, or send the file in base64")
        return picture_bytes(url, where=where, allow_urls=True)

    def _file(self, name: str, where: str) -> bytes:
        if self.folder is None:
            raise InputError(f"{where}: this service reads no files; send the file in base64")
        folder = self.folder.resolve()
        try:
            path = (folder / name).resolve()
            # What lies outside is not told from what is missing: a caller learns nothing about the disk.
            if not path.is_relative_to(folder) or not path.is_file():
                raise FileNotFoundError
            if path.stat().st_size > self.max_bytes:
                raise InputError(f"{where}: has more than {self.max_bytes:,} bytes; make it smaller")
            return path.read_bytes()
        except (OSError, ValueError):
            raise InputError(f"{where}: there is no such file in the service's folder of media") from None

    def _checked(self, data: bytes, kind: str, where: str) -> bytes:
        self.count += 1
        self.bytes += len(data)
        if self.count > self.max_media:
            raise InputError(f"{where}: more than {self.max_media} pictures and clips; send fewer at once")
        if self.bytes > self.max_bytes:
            raise InputError(f"{where}: media of more than {self.max_bytes:,} bytes; send fewer at once")
        self.left[kind] -= (
            _pixels_of_picture(data) if kind == "image" else _pixels_of_clip(data, self.left[kind])
        )
        if self.left[kind] < 0:
            what = "pictures have" if kind == "image" else "frames of the clips have"
            raise InputError(f"{where}: the {what} more pixels than allowed; make them smaller or send fewer")
        return data


def _pixels_of_picture(data: bytes) -> int:
    """Width times height by the header; what is no picture has none, and is named where it is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return image.width * image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return MAX_IMAGE_PIXELS
    except Exception:  # damaged bytes make Pillow's parsers raise almost anything
        return 0


def _pixels_of_clip(data: bytes, most: int) -> int:
    """Pixels of the frames of a clip, by its packets, none decoded; counting ends beyond ``most``."""
    pixels = 0
    try:
        with av.open(
            io.BytesIO(data), options={"format_whitelist": VIDEO_FORMATS}, metadata_errors="ignore"
        ) as clip:
            for packet in clip.demux(video=0):
                pixels += packet.stream.width * packet.stream.height if packet.size else 0
                if pixels > most:
                    break
    except (av.FFmpegError, ValueError, IndexError):
        return 0  # is named where it is decoded
    return pixels
