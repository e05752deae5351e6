# SPDX-License-Identifier: Apache-2.0
"""Media: the original bytes from wherever a row keeps them, and from nowhere else."""

import base64
import zipfile

import numpy as np
import pytest

from ixc_lightning.datamodules.media import decode_video
from ixc_lightning.datamodules.sources import _media
from ixc_lightning.datamodules.sources._media import MediaStore, Medium, clip_of_frames
from ixc_lightning.datamodules.sources._reading import Row
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import picture

RED, BLUE = picture("red"), picture("blue", "PNG")
SHADE = 4
"""Grey levels that JPEG may change a plain grey by."""


@pytest.fixture
def row(tmp_path):
    """A row of a file that lies beside its pictures, inside a folder of other things."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "red.jpg").write_bytes(RED)
    (tmp_path / "secret.jpg").write_bytes(RED)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("deep/blue.bin", BLUE)
    return Row({}, str(tmp_path / "set" / "data.jsonl"), 3)


def load(row, value, roots=None):
    with MediaStore(roots) as store:
        return store.load(value, row, "image")


@pytest.mark.parametrize(
    "value",
    [
        RED,
        {"bytes": RED, "path": "/makers/of/the/set/red.jpg"},
        {"bytes": None, "path": "images/red.jpg"},
        "images/red.jpg",
        "./images/red.jpg",
        "images\\red.jpg",
        base64.b64encode(RED).decode(),
        "data:image/png;base64," + base64.b64encode(RED).decode(),
        [RED],
        [[RED], None, []],
    ],
)
def test_every_way_to_give_a_picture_gives_its_bytes(row, value):
    assert load(row, value) == [Medium("image", "jpg", RED)]


@pytest.mark.parametrize("value", [None, "", [], [None]])
def test_no_picture_is_none(row, value):
    assert load(row, value) == []


def test_a_list_keeps_its_order_and_roots_are_searched_in_theirs(row, tmp_path):
    roots = [str(tmp_path / "images.zip"), str(tmp_path / "set")]
    assert load(row, ["images/red.jpg", "deep/blue.bin"], roots) == [
        Medium("image", "jpg", RED),
        Medium("image", "png", BLUE),
    ]


@pytest.mark.parametrize(
    ("data", "kind", "extension"),
    [
        (picture("red", "GIF"), "image", "gif"),
        (picture("red", "WEBP"), "image", "webp"),
        (b"\0\0\0\x20ftypisom" + bytes(20), "video", "mp4"),
        (b"\x1aE\xdf\xa3" + bytes(20), "video", "mkv"),
        (b"RIFF\0\0\0\0AVI " + bytes(20), "video", "avi"),
    ],
)
def test_a_medium_is_named_by_its_bytes_whatever_its_name_says(row, tmp_path, data, kind, extension):
    (tmp_path / "set" / "a.jpg").write_bytes(data)
    assert load(row, "a.jpg") == [Medium(kind, extension, data)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/etc/passwd", "'/etc/passwd' leads out of the folder of the media"),
        ("../secret.jpg", "leads out of the folder"),
        ("images/../../secret.jpg", "leads out of the folder"),
        ("..\\secret.jpg", "leads out of the folder"),
        ("C:\\secret.jpg", "leads out of the folder"),
        ("images/red.jpg\0", "leads out of the folder"),
        ("https://example.org/a.jpg", "is the address 'https://example.org/a.jpg'; download it"),
        ("file:///etc/passwd", "is the address"),
        ("images/blue.jpg", r"no file 'images/blue.jpg' in .*set; name its folder or zip with --media"),
        ("images", "no file 'images'"),
        (".", "no file '.'"),
        (b"BM no JPEG", r"the bytes \(10 bytes\) is none of jpg, png"),
        (b"", r"the bytes \(0 bytes\) is none of jpg, png"),
        (b"\0\0\0\x20ftypavif" + bytes(20), "is none of jpg, png"),
        ("data:image/png;base64,no*", "is no base64"),
        ({"url": "a"}, "must have bytes or path, not url"),
        (7, "must be a path or bytes, not int"),
    ],
)
def test_what_cannot_be_used_is_named_with_file_row_and_field(row, value, message):
    with pytest.raises(InputError, match=r"data.jsonl, row 3, image: .*" + message):
        load(row, value)


def test_a_root_that_is_not_there_or_no_zip_is_named(row, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        load(row, "a.jpg", "nowhere")
    (tmp_path / "a.rar").write_bytes(b"rar")
    with pytest.raises(InputError, match=r"a.rar: is neither a folder nor a zip"):
        load(row, "a.jpg", str(tmp_path / "a.rar"))


def test_a_rate_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="frames_per_second is 0, but must be at least 1"):
        MediaStore(fps=0)


def test_a_damaged_zip_member_is_named(row, tmp_path):
    path = tmp_path / "images.zip"
    data = path.read_bytes()
    path.write_bytes(data.replace(BLUE[-12:-4], b"\0" * 8, 1))
    with pytest.raises(InputError, match=r"row 3, image: 'deep/blue.bin' in .*images.zip cannot be unpacked"):
        load(row, "deep/blue.bin", str(path))


def test_what_is_too_large_is_refused_unread(row, tmp_path, monkeypatch):
    monkeypatch.setattr(_media, "MAX_BYTES", len(BLUE) - 1)
    with pytest.raises(InputError, match=r"row 3, image: .*red.jpg' has \d+ bytes, the limit is"):
        load(row, "images/red.jpg")
    with pytest.raises(InputError, match=r"row 3, image: 'deep/blue.bin' has \d+ bytes, the limit is"):
        load(row, "deep/blue.bin", str(tmp_path / "images.zip"))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "clip: frame 1 is no JPEG"),
        (BLUE, "clip: frame 1 is no JPEG"),
        (RED[:20], "clip: frame 1 is no JPEG"),
        (picture("red", size=(4, 4)), r"clip: the frames have the sizes \(4, 4\), \(8, 6\)"),
    ],
)
def test_frames_that_make_no_clip_are_named(row, tmp_path, frame, message):
    folder = tmp_path / "set" / "clip"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(RED)
    (folder / "1.jpg").write_bytes(frame)
    with MediaStore(fps=1) as store, pytest.raises(InputError, match="row 3, video: .*" + message):
        store.load("clip", row, "video")


def test_a_folder_of_frames_is_a_clip_of_their_bytes(row, tmp_path):
    greys = [0, 60, 120, 180, 240]
    frames = [picture(f"rgb({grey},{grey},{grey})") for grey in greys]
    folder = tmp_path / "set" / "clip"
    folder.mkdir()
    for number, data in enumerate(frames):
        (folder / f"{number:03d}.jpg").write_bytes(data)
    (folder / "notes.txt").write_text("no frame")
    with MediaStore(fps=2) as store:
        (clip,) = store.load("clip", row, "video")
    assert clip == Medium("video", "avi", clip_of_frames(frames, fps=2))
    assert all(data in clip.data for data in frames)
    assert b"Lavf" not in clip.data  # the version of the library would change the bytes
    decoded = decode_video(clip.data, frames=5, where="test")
    assert np.abs(decoded.frames.mean(axis=(1, 2, 3)) - greys).max() < SHADE
    assert decoded.timestamps == [0.0, 0.5, 1.0, 1.5, 2.0]
