# SPDX-License-Identifier: Apache-2.0
"""Damage of every kind, made at random: it ends in a valid record, in a named error, or in the quarantine.

Never in another exception, a hang, memory without bound, or code that runs because a pickle says so.
"""

import json
import os
import pickle
import resource
import tarfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ixc_lightning.datamodules.index import index_path, write_index
from ixc_lightning.datamodules.media import MAX_IMAGE_PIXELS, decode_image, decode_video
from ixc_lightning.datamodules.quarantine import BadSample, Quarantine
from ixc_lightning.datamodules.records import FIELDS, MAX_DEPTH, Kind, parse_record
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError, Record
from tests.datamodules.test_index import packed, within
from tests.datamodules.test_media import RAMP, clip, encoded, photo

SECONDS = 10
"""A case takes milliseconds; this is time for a busy machine."""
MEMORY = 2 << 30
"""What a case is given beside what the process has: room for the largest picture that is allowed."""
PEAK = 1 << 30
"""What all cases together may add to the memory of the process."""
CLEAN, ERROR, QUARANTINED = "clean", "named error", "quarantined"


@contextmanager
def bounds():
    """Stop a case that takes too long, and refuse it memory beyond what the process has and ``MEMORY``."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    try:
        with within(SECONDS):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fuzz(judge, cases, count):
    """Judge ``count`` cases, and return how often each outcome came."""
    outcomes = Counter()

    # Cases are small as they are, and to look for a smaller one that hangs too takes long.
    @settings(max_examples=count, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(cases)
    def run(case):
        with bounds():
            outcomes[judge(case)] += 1

    run()
    return outcomes


def named(error, place):
    """The outcome of an error, once it is known that its message names the place and fits a log."""
    assert str(error).startswith(place)
    assert len(str(error)) < 1000
    return ERROR


# Records ------------------------------------------------------------------------------------------------

PICTURE, CLIP = encoded(photo(), "JPEG"), clip(RAMP[:6])
NASTY = st.one_of(
    st.sampled_from(["", " ", "\0", "<image>", "../../x", "user", "system", "00.jpg"]),
    st.sampled_from([True, None, -1, 10**400, float("nan"), float("inf"), -0.0, 1e308, 2**63]),
    st.builds(lambda: [[[]]]) | st.builds(dict),
    st.text(st.characters(categories=["Cs", "Ll"]), min_size=1, max_size=3),
)
WORDS = st.text(min_size=1, max_size=30)
NAMES = WORDS | st.sampled_from(["role", "content", "type", "text", "file", *FIELDS])
JSON = st.recursive(
    NASTY | WORDS | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def pair(files=("00.jpg",)):
    media = [{"type": "video" if name.endswith("mp4") else "image", "file": name} for name in files]
    return {
        "id": "1",
        "source": "test",
        "domain": "reading",
        "messages": [{"role": "user", "content": [*media, {"type": "text", "text": "Which?"}]}],
        "chosen": "It is 7.",
        "rejected": "It is 1.",
        "margin": 0.5,
        "answer": 7,
    }


@st.composite
def records(draw):
    """The JSON of a record in which some value, however deep, is another, or some bytes are."""
    raw = pair()
    for _ in range(draw(st.integers(0, 2))):
        place = raw
        name = draw(st.sampled_from([*FIELDS, *["answer", "chosen", "messages"] * 5, draw(NAMES)]))
        while isinstance(inner := place.get(name) if isinstance(place, dict) else place[name], (dict, list)):
            if not inner or draw(st.integers(0, 4)) == 0:
                break
            place, name = (
                inner,
                draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))),
            )
        place[name] = draw(draw(st.sampled_from([JSON, NASTY, NASTY, WORDS])))
    data = json.dumps(raw).encode()
    match draw(st.integers(0, 9)):
        case 0:
            depth = draw(st.sampled_from([20, 33, 900, 5000]))
            return data[:-1].replace(b'"answer": 7', b'"answer": ' + b"[" * depth + b"]" * depth) + b"}"
        case 1 | 2:
            return draw(damaged(data))
    return data


@st.composite
def damaged(draw, data):
    """Bytes with some changed, cut out, doubled or added, and perhaps cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 64))
        new = draw(
            st.just(b"")
            | st.binary(max_size=16)
            | st.sampled_from(
                [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", bytes(data[place : place + 64])]
            )
        )
        data[place : place + draw(st.sampled_from([len(new), 0, length]))] = new
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


def levels(value):
    """How deep lists and objects lie in one another."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


def judge_record(data):
    kind = [*[Kind.PREFERENCE] * 4, *Kind][len(data) % 7]
    try:
        record = parse_record(data, {"00.jpg": PICTURE}, kind=kind, shard="a.tar", key="k1")
    except InputError as error:
        return named(error, "a.tar, sample 'k1', ")
    assert isinstance(record, Record)
    assert {part["file"] for part in record.parts if part["type"] != "text"} == set(record.media)
    assert 0 <= record.margin < float("inf")
    assert levels(record.answer) <= MAX_DEPTH + 1
    assert pickle.loads(pickle.dumps(record)) == record  # as on its way out of a worker
    values = [record.messages, record.chosen, record.rejected, record.answer]
    json.dumps(values, allow_nan=False, ensure_ascii=False).encode()  # as on its way to a tokenizer
    return CLEAN


# Media --------------------------------------------------------------------------------------------------

ANIMATION = encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(90), photo().rotate(180)])
EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = [
    PICTURE,
    encoded(photo(), "JPEG", progressive=True, exif=EXIF),
    encoded(photo().convert("CMYK"), "JPEG"),
    encoded(photo(), "PNG"),
    encoded(photo().convert("P"), "PNG", transparency=0),
    encoded(photo().convert("I;16"), "PNG"),
    encoded(photo(), "WEBP"),
    ANIMATION,
]
CLIPS = [
    CLIP,
    clip(RAMP[:6], codec="libvpx-vp9", container="webm"),
    clip(RAMP[:6], codec="mpeg4", container="avi"),
    clip(RAMP[:6], container="mpegts"),
    clip(RAMP[:6], audio=True),
    ANIMATION,
]


def judge_picture(data):
    try:
        image = decode_image(data, where="a.tar:k1.00.jpg")
    except InputError as error:
        return named(error, "a.tar:k1.00.jpg: ")
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_IMAGE_PIXELS
    image.tobytes()
    return CLEAN


def judge_clip(data):
    try:
        decoded = decode_video(data, frames=4, where="a.tar:k1.00.mp4")
    except InputError as error:
        return named(error, "a.tar:k1.00.mp4: ")
    assert 0 < len(decoded.frames) == len(decoded.indices) == len(decoded.timestamps) <= 4
    assert decoded.indices[-1] < decoded.num_frames
    return CLEAN


# Shards -------------------------------------------------------------------------------------------------


def member(name, data=b"", kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, "s0.json" if kind != tarfile.REGTYPE else ""
    return info, data


def members():
    media = {"00.jpg": PICTURE, "01.png": PICTURES[3], "00.mp4": CLIP}
    for number, files in enumerate([(), ("00.jpg",), ("00.jpg", "01.png"), ("00.mp4",), ()]):
        yield member(f"s{number}.json", json.dumps(pair(files)).encode())
        for name in files:
            yield member(f"s{number}.{name}", media[name])


GOOD = list(members())
WHOLE = packed(GOOD, tarfile.GNU_FORMAT)
HEADERS = {
    "name": (0, 100),
    "size": (124, 136),
    "checksum": (148, 156),
    "type": (156, 157),
    "magic": (257, 265),
}


HEADER_VALUES = {
    "size": [b"\xff" * 10 + b"\xfe\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 11, b"-1", b""],
    "type": [bytes([kind]) for kind in b"0123456789xgLKSVDMN\0A"],
}


def with_header(data, number, field, value):
    """A tar in which one field of the header of member ``number`` is another, and the checksum is right."""
    starts = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    start = starts[number % len(starts)]
    block = bytearray(data[start : start + 512])
    first, last = HEADERS[field]
    block[first:last] = value[: last - first].ljust(last - first, b"\0")
    if field != "checksum":
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return data[:start] + bytes(block) + data[start + 512 :]


@st.composite
def tars(draw, bomb):
    """A shard with members added, lost or changed, and perhaps a wrong header or other damage.

    With it come the keys of its samples, or None where the damage makes them doubtful.
    """
    parts = list(GOOD)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        number = draw(st.integers(0, len(parts) - 1))
        info, data = parts[number]
        name = draw(
            st.sampled_from(
                ["x.json", "s1.00.jpg", "s1.pyd", "s2.pickle", "../s9.json", "/s9.json", "README"]
            )
            | st.sampled_from(["s3.pth", "s\x1b.json", "s\udcff.json", "k" * 2000 + ".json"])
        )
        body = draw(st.sampled_from([bomb, b"", PICTURE, GOOD[0][1]]) | records())
        kind = draw(
            st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
        )
        parts[number : number + 1] = draw(
            st.sampled_from(
                [
                    [],
                    [parts[number]] * 2,
                    [member(info.name, body)],
                    [member(info.name, data[: len(data) // 2])],
                    [parts[number], member(name, body if kind == tarfile.REGTYPE else b"", kind)],
                ]
            )
        )
        parts = parts or GOOD[:1]
    data = packed(parts, draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    keys = {info.name.partition(".")[0] for info, _ in parts if info.name != "README"}
    data = data[: len(data.rstrip(b"\0")) // 512 * 512 + 1536]
    match draw(st.integers(0, 7)):
        case 0:
            return data[: draw(st.integers(0, len(data) // 512)) * 512], None
        case 1:
            return draw(damaged(data)), None
        case 2 | 3 | 4:
            field = draw(st.sampled_from(["size", "size", *HEADERS]))
            value = draw(
                st.sampled_from(HEADER_VALUES[field]) if field in HEADER_VALUES else st.binary(max_size=12)
            )
            return with_header(data, draw(st.integers(0, 20)), field, value), None
    return data, keys


@st.composite
def indices(draw, index):
    """A sidecar in which a number or a word is another, or some bytes are."""
    header, *entries = (json.loads(line) for line in index.splitlines())
    value = draw(st.sampled_from([0, -600, 511, 512, 2**31, 10**15, 10**30, 512.0]) | NASTY | JSON)
    entry = draw(st.sampled_from(entries))
    match draw(st.integers(0, 3)):
        case 0:
            header[draw(st.sampled_from([*header, "x"]))] = value
        case 1:
            entry[draw(st.integers(0, 3))] = value
        case 2:
            entry[3][draw(st.sampled_from(sorted(entry[3])))][draw(st.integers(0, 1))] = value
    return b"".join(json.dumps(line).encode() + b"\n" for line in (header, *entries))


def read_all(path, on_damage, on_error):
    """Open a shard and decode every record of it; returns how many of them were good."""
    dataset = ShardDataset(path, kind="preference", on_damage=on_damage)
    good = 0
    for index in range(len(dataset)):
        try:
            record = dataset.record(index)
            for part in record.parts:
                where = f"{record.shard}:{record.key}.{part.get('file')}"
                if part["type"] == "image":
                    decode_image(record.media[part["file"]], where=where)
                elif part["type"] == "video":
                    decode_video(record.media[part["file"]], frames=2, where=where)
            good += 1
        except InputError as error:
            on_error(BadSample("", str(path), str(error)), error)
    dataset.close()
    return good


def stop(_, error):
    raise error


def judge_shard(path, quarantine, keys=None):
    """Read a shard under either policy; the two must agree on whether anything is wrong with it."""
    first = ""
    try:
        read_all(path, None, stop)
    except InputError as error:
        first = str(error)
        assert path.stem in first
    bad = []
    try:
        good = read_all(path, bad.append, lambda sample, _: bad.append(sample))
    except InputError as error:  # nothing is left
        return named(error, str(path.with_suffix("")) if first else "an error under one policy alone")
    # A sidecar of another tar is an error or, where the run must go on, a reason to scan this one.
    assert bool(bad) == bool(first) or "made from another version" in first, (first, bad)
    assert keys is None or good + len(bad) == len(keys), "a sample is lost without a word"
    for sample in bad:
        assert path.stem in sample.reason
        quarantine.add(sample, quarantine.num_seen)
    quarantine.seen(good + len(bad), quarantine.num_seen + good + len(bad))
    return QUARANTINED if bad else CLEAN


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bomb(tmp_path):
    """The bytes of a pickle; it is a fault if what it makes is there at the end."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()
    yield pickle.dumps(Bomb(tmp_path / "made-by-a-pickle"))
    assert not (tmp_path / "made-by-a-pickle").exists()


def peak():
    """The most bytes that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run_all(folder, bomb, count):
    """Judge ``count`` cases of every family, and return their outcomes."""
    path = folder / "fuzzed.tar"
    quarantine = Quarantine("quarantine", folder / "bad", max_fraction=1.0)
    before = peak()

    def judge_tar(case):
        data, keys = case
        path.write_bytes(data)
        outcome = judge_shard(path, quarantine, keys)
        assert outcome != CLEAN or data.endswith(bytes(512)), "a tar without an end was taken for whole"
        return outcome

    def judge_index(data):
        path.write_bytes(WHOLE)
        index_path(path).write_bytes(data)
        outcome = judge_shard(path, quarantine)
        index_path(path).unlink()
        return outcome

    path.write_bytes(WHOLE)
    write_index(path)
    index = index_path(path).read_bytes()
    index_path(path).unlink()
    outcomes = {
        "records": fuzz(judge_record, records() | st.just(bomb), 2 * count),
        "pictures": fuzz(judge_picture, st.sampled_from([*PICTURES, bomb]).flatmap(damaged), count),
        "clips": fuzz(judge_clip, st.sampled_from([*CLIPS, bomb]).flatmap(damaged), count),
        "tars": fuzz(judge_tar, tars(bomb), count),
        "indices": fuzz(judge_index, indices(index) | damaged(index) | st.just(bomb), count),
    }
    assert peak() - before < PEAK
    lines = (folder / "bad" / "bad-samples-00000.jsonl").read_text().splitlines()
    assert quarantine.num_bad == len(lines)
    return outcomes


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)


def test_a_hundred_cases_end_well(tmp_path, bomb):
    outcomes = run_all(tmp_path, bomb, 17)
    assert sum(counts.total() for counts in outcomes.values()) == 102


@pytest.mark.slow
def test_two_thousand_cases_end_well_and_in_every_way(tmp_path, bomb):
    outcomes = run_all(tmp_path, bomb, 400)
    assert sum(counts.total() for counts in outcomes.values()) == 2400
    for family in ("records", "pictures", "clips"):
        assert min(outcomes[family][outcome] for outcome in (CLEAN, ERROR)) >= 10, outcomes
    assert min(outcomes["tars"][outcome] for outcome in (CLEAN, ERROR, QUARANTINED)) >= 10, outcomes
    assert min(outcomes["indices"][outcome] for outcome in (CLEAN, ERROR)) >= 10, outcomes
