# SPDX-License-Identifier: Apache-2.0
"""Decoding: out come upright RGB and the right frames; damaged bytes give one error that names the place."""

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ixc_lightning.datamodules import media
from ixc_lightning.datamodules.media import MAX_IMAGE_PIXELS, decode_image, decode_video
from ixc_lightning.types import InputError

WHERE = "a.tar:k1/00.jpg"
LOSSY = 16
"""Largest grey-level error that JPEG, WebP or H.264 at high quality may make on smooth pictures."""
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(height=16, width=24):
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    return np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1).astype(np.uint8)


def encoded(image, fmt, **options):
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def pixels(data):
    image = decode_image(data, where=WHERE)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("fmt", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, LOSSY),
        ("JPEG", {"quality": 100, "subsampling": 0}, LOSSY),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, LOSSY),
    ],
)
def test_colour_pictures_come_back(fmt, options, tolerance):
    decoded = pixels(encoded(Image.fromarray(gradient()), fmt, **options))
    assert np.abs(decoded - gradient()).max() <= tolerance


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = np.array([[0, 256 * 10, 256 * 128, 65535]], dtype=np.uint16)
    decoded = pixels(encoded(Image.fromarray(grey), "PNG"))
    assert decoded[0].tolist() == [[0] * 3, [10] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_pictures_without_colour_or_with_a_palette_become_rgb(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    assert (pixels(encoded(image, "PNG")) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert pixels(encoded(image.convert(mode), "PNG"))[0].tolist() == [[255] * 3, [0] * 3]


def test_a_transparent_palette_lies_over_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG", transparency=0))[0].tolist() == [[255] * 3, list(RED)]


def test_cmyk_becomes_rgb():
    data = encoded(Image.new("RGB", (8, 8), RED).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(pixels(data) - RED).max() <= LOSSY


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    assert (pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == GREEN).all()


TURNED = {1: np.asarray, 3: lambda a: np.rot90(a, 2), 6: lambda a: np.rot90(a, -1), 8: np.rot90}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = pixels(encoded(Image.fromarray(gradient()), "PNG", exif=exif))
    assert (decoded == TURNED[orientation](gradient())).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0", b"junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_exif_that_cannot_be_read_turns_nothing(exif):
    decoded = pixels(encoded(Image.fromarray(gradient()), "JPEG", quality=100, subsampling=0, exif=exif))
    assert np.abs(decoded - gradient()).max() <= LOSSY


def photo(height=61, width=83):
    """Noise over a ramp, of odd size: what decoders may round apart."""
    noise = np.random.default_rng(7).integers(-40, 40, (height, width, 3))
    return Image.fromarray((gradient(height, width) + noise).clip(0, 255).astype(np.uint8))


JPEGS = {
    **{f"subsampling {mode}": (photo(), {"quality": 80, "subsampling": mode}) for mode in (0, 1, 2)},
    "progressive": (photo(), {"progressive": True}),
    "grey": (photo().convert("L"), {}),
    "poor": (photo(), {"quality": 5}),
    "restart": (photo(), {"restart_marker_blocks": 2}),
    "RGB": (photo(), {"keep_rgb": True}),
    "one pixel": (photo(1, 1), {}),
    "CMYK": (photo().convert("CMYK"), {}),
    **{
        f"turned {turn}": (
            photo(),
            {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0%c" % turn + bytes(6)},
        )
        for turn in range(1, 9)
    },
}


@pytest.mark.parametrize("case", JPEGS)
def test_the_turbo_decoder_gives_the_pixels_of_pillow(case, monkeypatch):
    image, options = JPEGS[case]
    data = encoded(image, "JPEG", **options)
    decoded = []
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spied(simplejpeg.decode_jpeg, decoded))
    with_turbo = pixels(data)
    assert len(decoded) == (case != "CMYK")  # the two convert it differently
    monkeypatch.setattr(media, "simplejpeg", None)
    np.testing.assert_array_equal(with_turbo, pixels(data))
    if case.startswith("turned"):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(with_turbo, np.asarray(upright))


def spied(function, results):
    """``function``, which also puts what it returns on a list."""

    def call(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    return call


def test_what_the_turbo_decoder_refuses_is_left_to_pillow():
    """A damaged byte near the end that libjpeg only warns of: one decoder is strict, the other is not."""
    data = encoded(photo(), "JPEG")
    damaged = next(
        damaged
        for place in range(3, 300)
        for damaged in [data[:-place] + bytes([data[-place] ^ 0x55]) + data[len(data) - place + 1 :]]
        if is_refused(damaged)
    )
    with Image.open(io.BytesIO(damaged)) as image:
        np.testing.assert_array_equal(pixels(damaged), np.asarray(image))


def is_refused(data):
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError as error:
        return "Corrupt JPEG data" in str(error)
    return False


def chunk(tag, body):
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def png(width, height, rows, *, depth=8, colour=2):
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def png_header(width, height):
    """A PNG that claims a size and holds almost nothing."""
    return png(width, height, b"\0")


def test_sixteen_bit_colour_and_transparency_keep_their_high_bytes():
    colour = struct.pack(">x6H", 256 * 10, 65535, 0, 256 * 200, 256 * 7, 255)
    assert pixels(png(2, 1, colour, depth=16))[0].tolist() == [[10, 255, 0], [200, 7, 0]]
    with_alpha = struct.pack(">x8H", 0, 0, 0, 0, 256 * 9, 256 * 8, 256 * 7, 65535)
    assert pixels(png(2, 1, with_alpha, depth=16, colour=6))[0].tolist() == [[255] * 3, [9, 8, 7]]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [int(MAX_IMAGE_PIXELS**0.5) + 1, 10_000, 60_000])
def test_an_image_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(InputError, match=r"a.tar:k1/00.jpg: has .* pixels, the limit is 80,000,000"):
        decode_image(png_header(side, side), where=WHERE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"not a picture",
        b"%PDF-1.7",
        encoded(Image.fromarray(gradient()), "BMP"),
        png_header(0, 5),
    ],
)
def test_what_is_no_picture_is_refused_without_addresses_in_the_message(data):
    with pytest.raises(InputError, match=r"a.tar:k1/00.jpg: cannot be decoded .* drop the record") as error:
        decode_image(data, where=WHERE)
    assert "0x" not in str(error.value)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_truncated_picture_is_refused(fmt, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    data = encoded(noise, fmt)
    with pytest.raises(InputError, match=r"a.tar:k1/00.jpg: cannot be decoded"):
        decode_image(data[: int(len(data) * share)], where=WHERE)


def clip(values, *, rate=10, codec="libx264", container="mp4", size=32, gop=12, audio=False, options=None):
    """An encoded video whose frame ``i`` is grey of ``values[i]``, with B-frames."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        if values:
            video = output.add_stream(codec, rate=rate, options=options or {})
            video.width, video.height, video.pix_fmt, video.gop_size = size, size // 2, "yuv420p", gop
            video.codec_context.thread_count = 1
        if audio:
            sound = output.add_stream("aac", rate=8000, layout="mono")
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.rate = 8000
            output.mux(sound.encode(silence))
            output.mux(sound.encode())
        for value in values:
            frame = av.VideoFrame.from_ndarray(np.full((size // 2, size, 3), value, np.uint8))
            output.mux(video.encode(frame))
        if values:
            output.mux(video.encode())
    return stream.getvalue()


RAMP = list(range(20, 240, 6))


def greys(decoded):
    return [round(float(frame.mean())) for frame in decoded.frames]


@pytest.mark.parametrize("gop", [1, 4, 250])
@pytest.mark.parametrize("frames", [1, 2, 5, 8, len(RAMP)])
def test_frames_are_spread_evenly_and_are_the_right_ones(frames, gop):
    decoded = decode_video(clip(RAMP, gop=gop), frames=frames, where=WHERE)
    expected = np.linspace(0, len(RAMP) - 1, frames).round().astype(int).tolist()
    assert decoded.indices == expected
    assert decoded.frames.shape == (frames, 16, 32, 3)
    assert decoded.frames.dtype == np.uint8
    assert np.abs(np.array(greys(decoded)) - np.array(RAMP)[expected]).max() < 3  # values are 6 apart
    assert decoded.num_frames == len(RAMP)
    assert decoded.fps == pytest.approx(10)
    assert decoded.timestamps == pytest.approx([index / 10 for index in expected])


@pytest.mark.parametrize(
    ("codec", "container"),
    [("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libx264", "matroska"), ("libx264", "mpegts")],
)
def test_other_containers_are_read(codec, container):
    decoded = decode_video(clip(RAMP, codec=codec, container=container), frames=5, where=WHERE)
    assert decoded.indices == [0, 9, 18, 27, 36]
    assert np.abs(np.array(greys(decoded)) - np.array(RAMP)[decoded.indices]).max() < 3


def test_a_short_clip_gives_all_of_its_frames():
    assert decode_video(clip(RAMP[:3]), frames=8, where=WHERE).indices == [0, 1, 2]


def test_sound_beside_the_picture_does_no_harm():
    assert decode_video(clip(RAMP, audio=True), frames=3, where=WHERE).indices == [0, 18, 36]


def with_times(times, *, container="mp4"):
    """A clip whose frames, grey 20, 26, 32 and so on, come at these times in tenths of a second."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        video = output.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt, video.gop_size = 32, 16, "yuv420p", 4
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), RAMP[number], np.uint8))
            frame.pts, frame.time_base = time, Fraction(1, 10)
            output.mux(video.encode(frame))
        output.mux(video.encode())
    return stream.getvalue()


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_at_a_variable_frame_rate_frames_are_counted_and_their_times_told(container):
    times = [0, 1, 2, 3, 4, 5, 6, 7, 30, 60, 90, 91]
    decoded = decode_video(with_times(times, container=container), frames=4, where=WHERE)
    assert decoded.indices == [0, 4, 7, 11]
    assert decoded.timestamps == pytest.approx([0, 0.4, 0.7, 9.1], abs=1e-3)
    assert np.abs(np.array(greys(decoded)) - np.array(RAMP)[decoded.indices]).max() < 3


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_video_of_zero_length_is_named(container):
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        video = output.add_stream("libx264", rate=5)
        video.width, video.height, video.pix_fmt = 32, 16, "yuv420p"
        output.start_encoding()
    with pytest.raises(
        InputError, match=r"00.jpg: (has no (frames|video stream)|cannot be decoded \(End of)"
    ):
        decode_video(stream.getvalue(), frames=4, where=WHERE)


def test_a_clip_of_too_many_frames_is_refused(monkeypatch):
    monkeypatch.setattr(media, "MAX_CLIP_LENGTH", len(RAMP))
    assert decode_video(clip(RAMP), frames=2, where=WHERE).num_frames == len(RAMP)
    monkeypatch.setattr(media, "MAX_CLIP_LENGTH", len(RAMP) - 1)
    with pytest.raises(InputError, match=r"a.tar:k1/00.jpg: has more than 36 frames; cut it"):
        decode_video(clip(RAMP), frames=2, where=WHERE)


def test_frames_that_take_too_much_memory_together_are_refused(monkeypatch):
    monkeypatch.setattr(media, "MAX_CLIP_PIXELS", 4 * 32 * 16)
    assert len(decode_video(clip(RAMP), frames=4, where=WHERE).frames) == 4
    with pytest.raises(InputError, match=r"5 frames of 32x16 are too much; ask for fewer"):
        decode_video(clip(RAMP), frames=5, where=WHERE)


@pytest.mark.parametrize(("gop", "decoded"), [(250, 37), (1, 3), (12, 1 + 7 + 1)])
def test_only_what_is_needed_is_decoded_and_too_much_of_it_is_refused(gop, decoded, monkeypatch):
    """Frames 0, 18 and 36: with a keyframe every 12 frames, 1 + (12 … 18) + 1 of them."""
    data = clip(RAMP, gop=gop, options={"sc_threshold": "0"})
    monkeypatch.setattr(media, "MAX_DECODED_PIXELS", decoded * 32 * 16)
    assert decode_video(data, frames=3, where=WHERE).indices == [0, 18, 36]
    monkeypatch.setattr(media, "MAX_DECODED_PIXELS", decoded * 32 * 16 - 1)
    with pytest.raises(InputError, match=r"00.jpg: has too few keyframes for its length and size; write it"):
        decode_video(data, frames=3, where=WHERE)


def test_a_stream_that_grows_is_refused_before_the_larger_frames_are_decoded(monkeypatch):
    data = clip(RAMP, container="mpegts", size=32) + clip(RAMP, container="mpegts", size=64, rate=7)
    with pytest.raises(InputError, match="frames can be decoded to one size"):
        decode_video(data, frames=6, where=WHERE)
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 32 * 16 + 100)
    with pytest.raises(InputError, match=r"cannot be decoded \(Invalid data"):
        decode_video(data, frames=6, where=WHERE)


ONE = 1 << 16
MATRICES = {  # of the track header: (a, b, c, d) in 16.16, for turns against the clock
    0: (ONE, 0, 0, ONE),
    90: (0, -ONE, ONE, 0),
    180: (-ONE, 0, 0, -ONE),
    270: (0, ONE, -ONE, 0),
}


@pytest.mark.parametrize("turn", MATRICES)
def test_rotation_is_honoured(turn):
    stream = io.BytesIO()
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255
    with av.open(stream, "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=5)
        video.width, video.height, video.pix_fmt = 32, 16, "yuv420p"
        output.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        output.mux(video.encode())
    data = bytearray(stream.getvalue())
    a, b, c, d = MATRICES[turn]
    start = data.index(b"tkhd") + 44  # the tag, then 40 bytes before the matrix
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (frame,) = decode_video(bytes(data), frames=1, where=WHERE).frames
    expected = np.rot90(picture, turn // 90)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < LOSSY


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "cannot be decoded"),
        (b"not a video" * 50, "cannot be decoded"),
        (clip(RAMP)[:300], "cannot be decoded"),
        (clip([], audio=True), r"no video stream that can be decoded \(streams: audio\)"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "cannot be decoded"),
    ],
    ids=["empty", "text", "cut", "sound only", "playlist"],
)
def test_what_is_no_video_is_refused(data, problem):
    with pytest.raises(InputError, match=f"a.tar:k1/00.jpg: .*{problem}"):
        decode_video(data, frames=4, where=WHERE)


def test_a_list_of_other_files_is_not_followed(tmp_path, monkeypatch):
    """FFmpeg would open what a concatenation names, so a shard could read the files of the machine."""
    (tmp_path / "secret.mp4").write_bytes(clip(RAMP[:6]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_video(b"ffconcat version 1.0\nfile secret.mp4\n", frames=4, where=WHERE)


def test_a_hole_in_a_clip_is_refused_and_not_skipped():
    data = clip(RAMP)
    index = data.index(b"moov") - 4
    with pytest.raises(InputError, match=r"a.tar:k1/00.jpg: "):
        decode_video(data[: index // 2] + bytes(index - index // 2) + data[index:], frames=8, where=WHERE)


def test_a_clip_that_lacks_its_first_keyframe_is_refused_and_not_shortened():
    data = clip(RAMP, container="mpegts")
    with av.open(io.BytesIO(data)) as container:
        second = [packet.pos for packet in container.demux(video=0) if packet.size][1]
    with pytest.raises(InputError, match=r"a.tar:k1/00.jpg: only \d of 8 frames can be decoded"):
        decode_video(data[second:], frames=8, where=WHERE)


def test_no_frames_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="frames must be positive, not 0"):
        decode_video(clip(RAMP), frames=0, where=WHERE)


GOOD = [encoded(Image.fromarray(gradient()), fmt) for fmt in ("PNG", "JPEG", "WEBP", "GIF")]
GOOD_CLIP = clip(RAMP[:6])


@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_a_damaged_picture_is_decoded_or_refused(data, changes, share):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(data)] = value
    try:
        decode_image(bytes(damaged[: round(len(data) * share)]), where=WHERE)
    except InputError as error:
        assert str(error).startswith(WHERE)  # noqa: PT017


@given(st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=8), st.floats(0, 1))
def test_a_damaged_clip_is_decoded_or_refused(changes, share):
    damaged = bytearray(GOOD_CLIP)
    for place, value in changes:
        damaged[place % len(GOOD_CLIP)] = value
    try:
        decode_video(bytes(damaged[: round(len(GOOD_CLIP) * share)]), frames=3, where=WHERE)
    except InputError as error:
        assert str(error).startswith(WHERE)  # noqa: PT017
