# SPDX-License-Identifier: Apache-2.0
"""The media of a row as original bytes, wherever the data set keeps them.

In the row itself, as ``{"bytes": …, "path": …}``, bytes or base64; or in files and zip members that the row
names, below folders and zips that the user names.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple

import av
from PIL import Image

from ixc_lightning.datamodules.sources._files import find_files
from ixc_lightning.datamodules.sources._reading import Row
from ixc_lightning.types import InputError

MAX_BYTES = 2_000_000_000
"""A larger medium is refused before it is read."""
MAGIC = (
    ("image", "jpg", 0, b"\xff\xd8\xff"),
    ("image", "png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image", "gif", 0, b"GIF8"),
    ("image", "webp", 8, b"WEBP"),
    ("video", "avi", 8, b"AVI "),
    ("video", "mp4", 4, b"ftyp"),
    ("video", "mkv", 0, b"\x1aE\xdf\xa3"),
)
"""Kind, extension, and the bytes at a place that tell them, of the formats that the media layer decodes."""
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")
"""Pictures in the container of MP4; the media layer does not decode them."""
BASE64_STARTS = ("data:", "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
FRAMES = (".jpg", ".jpeg")


class Medium(NamedTuple):
    """A picture or a clip.

    Attributes:
        kind: ``image`` or ``video``, the type of the content part.
        extension: what its bytes say that it is, for the name of the member.
        data: the original bytes.
    """

    kind: str
    extension: str
    data: bytes


class MediaStore:
    """The folders and zips below which rows name their media. A context manager; it closes the zips.

    Paths are taken below the roots alone: absolute ones and ``..`` are refused. What the user's own links
    inside a root lead to is the user's business.

    Args:
        roots: folders or zip files, searched in order, also on the hub (``hf://datasets/OWNER/NAME/x.zip``);
            null is the folder of the data file.
        fps: frames per second of clips that are folders of JPEG frames; null takes no folders.

    Raises:
        InputError: naming a root that is not there, or a rate that is not positive.
    """

    def __init__(self, roots: str | Sequence[str] | None = None, *, fps: int | None = None) -> None:
        if fps is not None and fps < 1:
            raise InputError(f"frames_per_second is {fps}, but must be at least 1")
        self.fps = fps
        self._roots: list[Path] | None = None
        self._zips: dict[Path, zipfile.ZipFile] = {}
        if roots is not None:
            self._roots = [_root(name) for name in ([roots] if isinstance(roots, str) else roots)]

    def __enter__(self) -> MediaStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._zips:
            self._zips.popitem()[1].close()

    def load(self, value: Any, row: Row, field: str) -> list[Medium]:
        """Return the media that a field gives: none, one, or a list of them.

        Args:
            value: None, an empty string, bytes, a path, base64, a ``{"bytes", "path"}`` struct, or a list.
            row: the row, for messages.
            field: name of the field, for messages.

        Raises:
            InputError: naming the row, if a file is missing, a path leaves the root, or the bytes are of no
                format that can be decoded.
        """
        if value is None or value == "" or value == []:
            return []
        if isinstance(value, list):
            return [medium for item in value for medium in self.load(item, row, field)]
        if isinstance(value, dict):
            if not value.keys() & {"bytes", "path"}:
                raise row.error(field, f"must have bytes or path, not {', '.join(value) or 'nothing'}")
            # Some sets give an absolute path of their makers beside the bytes.
            return self.load(value.get("bytes") or value.get("path"), row, field)
        if isinstance(value, bytes):
            return [_identify(value, row, field, "the bytes")]
        if isinstance(value, str):
            if value.startswith(BASE64_STARTS):
                return [_identify(_from_base64(value, row, field), row, field, "the base64 text")]
            return [self._from_path(value, row, field)]
        raise row.error(field, f"must be a path or bytes, not {type(value).__name__}")

    def _from_path(self, name: str, row: Row, field: str) -> Medium:
        if "://" in name:
            raise row.error(field, f"is the address {name!r}; download it and name the file")
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or re.match("[A-Za-z]:", name):
            raise row.error(field, f"{name!r} leads out of the folder of the media, so it is not read")
        roots = [Path(row.file).parent] if self._roots is None else self._roots
        for root in roots:
            if root.is_file():
                data = self._from_zip(root, str(path), row, field)
            elif (root / path).is_dir() and self.fps is not None:
                data = _from_frames(root / path, self.fps, row, field)
            else:
                data = _from_file(root / path, row, field)
            if data is not None:
                return _identify(data, row, field, repr(name))
        places = ", ".join(map(str, roots))
        raise row.error(field, f"no file {name!r} in {places}; name its folder or zip with --media")

    def _from_zip(self, root: Path, name: str, row: Row, field: str) -> bytes | None:
        if root not in self._zips:
            try:
                self._zips[root] = zipfile.ZipFile(root)
            except zipfile.BadZipFile:
                raise InputError(f"{root}: is neither a folder nor a zip; unpack it") from None
        try:
            info = self._zips[root].getinfo(name)
            _check_bytes(info.file_size, name, row, field)
            return self._zips[root].read(info)
        except KeyError:
            return None
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
            raise row.error(
                field, f"{name!r} in {root} cannot be unpacked ({error}); unpack the zip"
            ) from None


def _from_file(path: Path, row: Row, field: str) -> bytes | None:
    if not path.is_file():
        return None
    _check_bytes(path.stat().st_size, str(path), row, field)
    try:
        return path.read_bytes()
    except OSError as error:
        raise row.error(field, f"{path} cannot be read ({error.strerror}); check its permissions") from None


def _from_frames(folder: Path, fps: int, row: Row, field: str) -> bytes | None:
    names = sorted(item for item in folder.iterdir() if item.suffix.lower() in FRAMES)
    frames = [_from_file(item, row, field) or b"" for item in names]
    try:
        return clip_of_frames(frames, fps=fps) if frames else None
    except ValueError as error:
        raise row.error(field, f"{folder}: {error}; the frames of a clip must be JPEG of one size") from None


def _check_bytes(size: int, name: str, row: Row, field: str) -> None:
    if size > MAX_BYTES:
        raise row.error(field, f"{name!r} has {size:,} bytes, the limit is {MAX_BYTES:,}; cut or shrink it")


def _root(name: str) -> Path:
    path = Path(name).expanduser()
    return path if path.exists() else next(iter(find_files(name, (".zip",))))


def _from_base64(text: str, row: Row, field: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise row.error(field, f"is no base64 ({error})") from None


def _identify(data: bytes, row: Row, field: str, what: str) -> Medium:
    """Return the medium, named by its bytes: names and columns of public sets often say another format."""
    for kind, extension, place, magic in MAGIC:
        if data[place : place + len(magic)] == magic and data[8:12] not in STILL_BRANDS:
            return Medium(kind, extension, data)
    formats = ", ".join(extension for _, extension, _, _ in MAGIC)
    raise row.error(field, f"{what} ({len(data)} bytes) is none of {formats}; convert it, or drop the row")


def clip_of_frames(frames: Sequence[bytes], *, fps: int) -> bytes:
    """Return JPEG frames as an AVI clip that holds their bytes as they are, the same on every call.

    Args:
        frames: the bytes of JPEG files, all of one size.
        fps: frames per second.

    Raises:
        ValueError: if a frame is no JPEG, or of another size than the first.
    """
    sizes = [_jpeg_size(data, number) for number, data in enumerate(frames)]
    if len(set(sizes)) > 1:
        raise ValueError(f"the frames have the sizes {', '.join(map(str, sorted(set(sizes))))}")
    stream = io.BytesIO()
    with av.open(stream, "w", format="avi", container_options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("mjpeg", rate=fps)
        video.width, video.height = sizes[0]
        video.pix_fmt = "yuvj420p"
        for number, data in enumerate(frames):
            packet = av.Packet(data)
            packet.stream, packet.is_keyframe = video, True
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, fps)
            container.mux(packet)
    return stream.getvalue()


def _jpeg_size(data: bytes, number: int) -> tuple[int, int]:
    try:
        # Reads the header alone.
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return image.size
    except Exception as error:  # damaged bytes make Pillow's parsers raise almost anything
        raise ValueError(f"frame {number} is no JPEG ({type(error).__name__})") from None
