# SPDX-License-Identifier: Apache-2.0
"""The sidecar says what a scan finds; a tar that nobody vouches for gives whole samples and named errors."""

import hashlib
import io
import json
import os
import signal
import tarfile
from contextlib import contextmanager

import pytest

from ixc_lightning.datamodules.index import (
    Entry,
    Header,
    index_path,
    read_entries,
    read_header,
    scan_shard,
    write_index,
)
from ixc_lightning.datamodules.record_checks import MAX_JSON_BYTES
from ixc_lightning.types import InputError


def record(number, files=("00.jpg",), **changes):
    kinds = {"jpg": "image", "mp4": "video"}
    media = [{"type": kinds[name.rpartition(".")[2]], "file": name} for name in files]
    content = [*media, {"type": "text", "text": "Which?"}]
    return {
        "id": str(number),
        "source": "test",
        "domain": ("reading", "charts")[number % 2],
        "messages": [{"role": "user", "content": content}],
    } | changes


def member(name, data=b"", *, kind=tarfile.REGTYPE, target="", size=None):
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    info.type, info.linkname = kind, target
    return info, data


def sample(number, files=("00.jpg",)):
    yield member(f"s{number}.json", json.dumps(record(number, files)).encode())
    for name in files:
        yield member(f"s{number}.{name}", bytes([number]) * 700)


FILES = [(), ("00.jpg",), ("00.jpg", "01.jpg"), ("00.mp4", "01.jpg")]


def packed(members, form=tarfile.PAX_FORMAT):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def good(count=4):
    return [one for number in range(count) for one in sample(number, FILES[number % 4])]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(packed(good()))
    return path


class HangError(BaseException):
    """No exception, so that nothing takes it for damage."""


@contextmanager
def within(seconds):
    """A guard against what never comes back."""

    def stop(*_):
        raise HangError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def salvaged(path):
    """Keys of the entries of a damaged shard, and what was reported."""
    bad = []
    return [entry.key for entry in scan_shard(path, on_damage=bad.append)], bad


def test_the_header_says_what_the_shard_holds(shard):
    header = write_index(shard)
    data = shard.read_bytes()
    assert header == Header(
        bytes=len(data),
        samples=4,
        modalities={"image": 1, "multi_image": 1, "text": 1, "video": 1},
        domains={"charts": 2, "reading": 2},
        sha256=hashlib.sha256(data).hexdigest(),
    )
    assert read_header(shard) == header
    assert json.loads(index_path(shard).read_text().splitlines()[0])["version"] == 2


def test_without_a_sidecar_a_scan_says_the_same_but_the_checksum(shard):
    scanned, entries = read_header(shard), read_entries(shard)
    assert write_index(shard)._replace(sha256="") == scanned
    assert read_entries(shard) == entries
    assert [entry.key for entry in entries] == ["s0", "s1", "s2", "s3"]


def test_the_header_is_read_without_the_entries(shard):
    header = write_index(shard)
    sidecar = index_path(shard)
    sidecar.write_bytes(sidecar.read_bytes().splitlines(keepends=True)[0] + b"junk\n")
    assert read_header(shard) == header
    with pytest.raises(InputError, match=r"a.index.jsonl: is not an index .*delete it"):
        read_entries(shard)


def test_places_are_those_of_the_members(shard):
    entries = read_entries(shard)
    data = shard.read_bytes()
    offset, size = entries[2].members["01.jpg"]
    assert data[offset : offset + size] == bytes([2]) * 700


def lines_of(shard, **changes):
    header, *lines = index_path(shard).read_bytes().splitlines()
    return [json.dumps(json.loads(header) | changes).encode(), *lines]


ENTRY = ["s9", "text", "reading", {"json": [512, 10]}]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda shard: [],
        lambda shard: [b"[" * 100_000],
        lambda shard: lines_of(shard, version=1),
        lambda shard: lines_of(shard, samples=5),
        lambda shard: lines_of(shard, samples="4"),
        lambda shard: lines_of(shard, domains={"reading": -1}),
        lambda shard: lines_of(shard, domains=[]),
        lambda shard: lines_of(shard, sha256=None),
        lambda shard: lines_of(shard, surplus=1),
        lambda shard: lines_of(shard)[:-1],
        lambda shard: [*lines_of(shard), json.dumps(ENTRY).encode()],
        *(
            lambda shard, entry=entry: [*lines_of(shard)[:-1], json.dumps(entry).encode()]
            for entry in (
                ENTRY[:3],
                [*ENTRY[:3], {"json": [512, 10**15]}],
                [*ENTRY[:3], {"json": [-600, 10]}],
                [*ENTRY[:3], {"json": [100, 10]}],
                [*ENTRY[:3], {"json": [512.0, 10]}],
                [*ENTRY[:3], {"json": [512]}],
                [7, *ENTRY[1:]],
                ["s9", "smell", "reading", {}],
            )
        ),
    ],
)
def test_a_sidecar_that_cannot_be_is_refused(shard, break_it):
    write_index(shard)
    index_path(shard).write_bytes(b"\n".join(break_it(shard)) + b"\n")
    with pytest.raises(InputError, match=r"a.index.jsonl: is not an index of version 2 \(.*\); delete it"):
        read_entries(shard)


def test_of_a_shard_cut_in_copying_the_sidecar_is_refused_or_the_rest_is_scanned(shard):
    write_index(shard)
    shard.write_bytes(shard.read_bytes()[:2000])
    for read in (read_header, read_entries):
        with pytest.raises(
            InputError, match=r"a.index.jsonl: was made from another version of a.tar; delete"
        ):
            read(shard)
    bad = []
    assert [entry.key for entry in read_entries(shard, on_damage=bad.append)] == ["s0", "s1"]
    assert read_header(shard, on_damage=bad.append).samples == 2
    assert [one.key for one in bad] == ["", ""]


@pytest.mark.parametrize("cut", range(0, len(packed(good())) - 10240, 300))
def test_a_cut_anywhere_leaves_the_samples_before_it_and_one_report(shard, cut):
    whole = scan_shard(shard)
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"a.tar: is .*cut off"):
        scan_shard(shard)
    bad = []
    found = scan_shard(shard, on_damage=bad.append)
    assert [(one.key, one.shard) for one in bad] == [("", str(shard))]
    assert "cut off" in bad[0].reason
    ends = {entry.key: max(map(sum, entry.members.values())) for entry in whole}
    assert [entry for entry in whole if ends[entry.key] <= cut] == [e for e in found if e in whole]
    for entry in found:
        assert all(sum(place) <= cut for place in entry.members.values())


def test_a_damaged_header_leaves_the_samples_before_it(shard):
    shard.write_bytes(shard.read_bytes().replace(b"s2.json", b"s\xff.json", 1))
    keys, bad = salvaged(shard)
    assert keys == ["s0", "s1"]
    assert [one.key for one in bad] == [""]
    assert "a.tar: is damaged at byte" in bad[0].reason


LINK = {"kind": tarfile.SYMTYPE, "target": "/etc/passwd"}


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([member("x.json", b"{}"), member("x.JSON", b"{}")], "member x.JSON comes twice; give every sample"),
        ([member(name) for name in ("x.json", "x.JSON", "x.Json")], "member x.JSON comes twice"),
        ([member("../../x.json", b"{}")], r"member ../../x.json leads out of the tar; rename it"),
        ([member("/etc/x.json", b"{}")], r"member /etc/x.json leads out of the tar; rename it"),
        ([member("x.json", **LINK)], "member x.json is a link or no plain file; store the file itself"),
        ([member("x.00.jpg", kind=tarfile.LNKTYPE, target="s0.json")], "member x.00.jpg is a link"),
        ([member("x.json", kind=tarfile.FIFOTYPE)], "member x.json is a link or no plain file"),
        ([member("x.json", kind=tarfile.CHRTYPE)], "member x.json is a link or no plain file"),
        ([member("x\n.json", b"{}")], r"the name of member 'x\\n.json' .* holds control characters"),
        ([member("x\x1b[2J.json", b"{}")], r"the name of member 'x\\x1b\[2J.json' .* control characters"),
        ([member("x\udcff.json", b"{}")], r"the name of member 'x\\udcff.json' .* beyond UTF-8; rename it"),
        ([member("x" * 5000 + ".json", b"{}")], "the name of member 'x{80}' is longer than 1024 characters"),
    ],
)
def test_a_member_that_cannot_be_trusted_is_named_and_costs_its_sample_alone(tmp_path, members, problem):
    path = tmp_path / "a.tar"
    path.write_bytes(packed([*sample(0), *members, *sample(1)], form=tarfile.GNU_FORMAT))
    with pytest.raises(InputError, match=problem):
        scan_shard(path)
    keys, bad = salvaged(path)
    assert keys == ["s0", "s1"]
    assert [one.key for one in bad] == [bad[0].key] != [""]


def test_folders_and_files_that_are_no_members_do_no_harm(tmp_path):
    path = tmp_path / "a.tar"
    others = [
        member("set.v2", kind=tarfile.DIRTYPE),
        member("README", b"x"),
        member("set/.DS_Store", b"x"),
        member("__meta__/x.json", b"x"),
    ]
    path.write_bytes(packed([*others, *sample(0)]))
    assert [entry.key for entry in scan_shard(path)] == ["s0"]


def header_with_size(size):
    """A member's header that claims a size in base 256, as GNU tar writes large ones."""
    block = bytearray(tarfile.TarInfo("x.json").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % 256**12 if size < 0 else size + (0x80 << 88)).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(kind, size, body=b""):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + body


def pax(text):
    return extended(tarfile.XHDTYPE, len(text), text.ljust(-len(text) // 512 * -512, b"\0"))


@pytest.mark.parametrize(
    "tail",
    [
        header_with_size(-512),
        header_with_size(-1024),
        header_with_size(2**60),
        pax(b"14 size=-1024\n") + tarfile.TarInfo("x.json").tobuf(),
        extended(tarfile.XHDTYPE, 1 << 20, b"1" * (1 << 20)),
        extended(tarfile.GNUTYPE_LONGNAME, 1 << 20, b"x" * (1 << 20)),
        extended(tarfile.GNUTYPE_LONGNAME, 3, b"abc".ljust(512, b"\0")) * 2000,
        extended(tarfile.GNUTYPE_SPARSE, 0)[:482] + b"\1" + b"\0" * 29,
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + tarfile.TarInfo("x.json").tobuf(),
    ],
    ids=["back", "far back", "huge", "pax size", "pax long", "name long", "nested", "sparse", "sparse pax"],
)
def test_a_header_made_to_hang_or_to_eat_memory_is_damage(tmp_path, tail):
    path = tmp_path / "a.tar"
    whole = packed(good(2))
    body = whole[: sum(512 + -len(data) // 512 * -512 for _, data in good(2))]
    path.write_bytes(body + tail + bytes(1024))
    with within(5):
        keys, bad = salvaged(path)
    assert keys[:2] == ["s0", "s1"]
    assert len(bad) == 1
    with pytest.raises(InputError, match=r"a.tar: "):
        scan_shard(path)


def test_long_and_foreign_names_are_read(tmp_path):
    path = tmp_path / "a.tar"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        key = "größe/" + "k" * 200 + " 猫"
        path.write_bytes(packed([member(f"{key}.json", json.dumps(record(1, ())).encode())], form))
        assert scan_shard(path)[0].key == key


def test_json_that_is_too_long_is_left_to_the_record(tmp_path):
    path = tmp_path / "a.tar"
    data = json.dumps(record(1, (), answer="x" * MAX_JSON_BYTES)).encode()
    path.write_bytes(packed([member("x.json", data)]))
    assert scan_shard(path) == [Entry("x", "text", "", {"json": (512, len(data))})]


@pytest.mark.parametrize("path", ["nowhere.tar", "folder"])
def test_what_cannot_be_opened_is_named(tmp_path, path):
    (tmp_path / "folder").mkdir()
    for read in (scan_shard, read_header, read_entries, write_index):
        with pytest.raises(InputError, match=rf"{path}: cannot be read \("):
            read(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(shard):
    shard.chmod(0)
    with pytest.raises(InputError, match=r"a.tar: cannot be read \(Permission denied\)"):
        scan_shard(shard)
