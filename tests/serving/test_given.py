# SPDX-License-Identifier: Apache-2.0
"""The media that a request names: read in every form, and counted before anything is decoded."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.types import InputError
from tests.serving.records import clip, picture, text_of
from tests.serving.service import MEDIA

PIXELS = 32 * 32


@pytest.fixture
def address():
    """Where a picture can be fetched."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/a.png"
        server.shutdown()
        thread.join()


def _media(**options):
    return RequestMedia(**{**MEDIA, **options})


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "DATA:;Base64,", "data:;x=y;base64,"])
def test_base64_and_data_urls_are_the_bytes_of_the_file(head):
    assert _media().files([head + text_of(picture())], "image", "images") == [picture()]


@pytest.mark.parametrize("text", ["data:image/png,abc", "data:image/png;base64", "a b", "äöü", "abc", "\n"])
def test_what_is_no_base64_is_named(text):
    with pytest.raises(InputError, match=r"images\[0\]: is no"):
        _media().files([text], "image", "images")


def test_urls_are_fetched_only_if_that_is_allowed(address):
    assert _media(allow_urls=True).files([address], "image", "images") == [picture()]
    turn = {"role": "user", "content": [{"type": "image", "url": address}]}
    (filled,) = _media(allow_urls=True).turns([turn], "conversation")
    assert filled["content"] == [{"type": "image", "image": picture()}]
    for media in (_media(), _media(folder=None)):
        with pytest.raises(InputError, match=r"conversation\[0\]\.content\[0\]\.url: .* fetches no URLs"):
            media.turns([turn], "conversation")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_no_other_urls_are_ever_opened(url):
    with pytest.raises(InputError, match=r"no http\(s\) URL"):
        _media(allow_urls=True).files([url], "image", "images")


def test_pixels_count_for_all_pictures_together():
    media = _media(max_pixels=3 * PIXELS)
    media.files([text_of(picture(n)) for n in range(3)], "image", "images")
    with pytest.raises(InputError, match=r"images\[0\]: the pictures have more pixels"):
        media.files([text_of(picture())], "image", "images")


def test_pixels_count_for_all_frames_of_a_clip_whether_sampled_or_not():
    data = text_of(clip(frames=20))
    _media(max_clip_pixels=20 * PIXELS).files([data], "video", "videos")
    with pytest.raises(InputError, match=r"videos\[0\]: the frames of the clips have more pixels"):
        _media(max_clip_pixels=20 * PIXELS - 1).files([data], "video", "videos")


def test_bytes_count_for_all_media_together():
    size = len(picture()) + len(clip())
    media = _media(max_bytes=size)
    media.files([text_of(picture())], "image", "images")
    media.files([text_of(clip())], "video", "videos")
    with pytest.raises(InputError, match=rf"media of more than {size:,} bytes"):
        media.files([text_of(picture())], "image", "images")
