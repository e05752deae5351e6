# SPDX-License-Identifier: Apache-2.0
"""What is in memory becomes a file that decodes to the very same pixels."""

import http.server
import io
import threading

import numpy as np
import pytest
from PIL import ExifTags, Image

from ixc_lightning.datamodules.given_media import picture_bytes, video_bytes
from ixc_lightning.datamodules.media import decode_image, decode_video
from ixc_lightning.types import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


def _decoded(picture, **options):
    return np.asarray(decode_image(picture_bytes(picture, where="here", **options), where="here"))


@pytest.mark.parametrize("picture", [PIXELS, Image.fromarray(PIXELS)])
def test_a_picture_in_memory_keeps_every_pixel(picture):
    assert (_decoded(picture) == PIXELS).all()


def test_grey_and_transparent_arrays_are_taken():
    assert (_decoded(PIXELS[..., 0]) == PIXELS[..., :1]).all()
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert (_decoded(clear) == 255).all()  # over white


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_pillow_is_taken(mode):
    assert _decoded(Image.fromarray(PIXELS).convert(mode)).shape == PIXELS.shape


def test_a_picture_from_a_camera_stands_upright_like_its_file(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(PIXELS, -1)
    assert (_decoded(tmp_path / "turned.png") == upright).all()
    assert (_decoded(Image.open(tmp_path / "turned.png")) == upright).all()


def test_paths_and_bytes_are_passed_on_untouched(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"as it is")
    for given in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), b"as it is"):
        assert picture_bytes(given, where="here") == video_bytes(given, where="here") == b"as it is"


@pytest.mark.parametrize("clip", [FRAMES, [Image.fromarray(frame) for frame in FRAMES]])
def test_a_clip_in_memory_keeps_every_pixel_and_is_sampled_as_a_file_is(clip):
    data = video_bytes(clip, where="here")
    assert (decode_video(data, frames=6, where="here").frames == FRAMES).all()
    assert decode_video(data, frames=3, where="here").indices == [0, 2, 5]


@pytest.mark.parametrize(
    ("read", "given", "message"),
    [
        (picture_bytes, PIXELS.astype(float), "give uint8 of shape"),
        (picture_bytes, np.zeros((3, 4, 2), np.uint8), "give uint8 of shape"),
        (picture_bytes, np.zeros((0, 4, 3), np.uint8), "give uint8 of shape"),
        (picture_bytes, 3, "is of type int; give a PIL image"),
        (picture_bytes, "no/such.png", "no/such.png cannot be read"),
        (picture_bytes, "ftp://host/a.png", "neither a path nor"),
        (picture_bytes, "https://host/a.png", "give allow_urls"),
        (video_bytes, FRAMES[0], "give uint8 of shape"),
        (video_bytes, [], "holds PIL images, at least one"),
        (video_bytes, [Image.new("RGB", (2, 2)), Image.new("RGB", (2, 3))], "different sizes"),
    ],
)
def test_what_is_no_media_is_refused_by_name(read, given, message, unchecked_shapes):
    with pytest.raises(InputError, match=rf"^here: .*{message}"):
        read(given, where="here")


def test_a_damaged_lazy_picture_is_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(PIXELS.repeat(20, 0)).save(file, "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:200])
    with (
        Image.open(tmp_path / "cut.png") as picture,
        pytest.raises(InputError, match="the picture cannot be read"),
    ):
        picture_bytes(picture, where="here")


@pytest.fixture
def web():
    """A server on this machine that has one file, ``/a.png``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/a.png":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture_bytes(PIXELS, where="here"))

        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_fetched_only_when_that_is_allowed(web):
    assert (_decoded(f"{web}/a.png", allow_urls=True) == PIXELS).all()
    with pytest.raises(InputError, match="give allow_urls"):
        _decoded(f"{web}/a.png")
    with pytest.raises(InputError, match=r"cannot be fetched .*404"):
        _decoded(f"{web}/b.png", allow_urls=True)


def test_a_large_file_is_refused_unread(web, tmp_path, monkeypatch):
    monkeypatch.setattr("ixc_lightning.datamodules.given_media.MAX_URL_BYTES", 50)
    monkeypatch.setattr("ixc_lightning.datamodules.given_media.MAX_FILE_BYTES", 50)
    (tmp_path / "a.png").write_bytes(b"0" * 51)
    for given in (f"{web}/a.png", tmp_path / "a.png"):
        with pytest.raises(InputError, match="more than 50 bytes"):
            picture_bytes(given, where="here", allow_urls=True)
