# SPDX-License-Identifier: Apache-2.0
"""The cache of remote shards: whole files alone, fetched once for all processes, within its size."""

import fcntl
import hashlib
import multiprocessing
import os
import pickle
import time

import pytest

from ixc_lightning.datamodules import cache as cache_module
from ixc_lightning.datamodules import remote
from ixc_lightning.datamodules.cache import ShardCache, index_url
from ixc_lightning.types import InputError
from tests.datamodules.web import CUT, DROPPED, serve

PATIENCE_S = 20
BODY = bytes(range(256)) * 40
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def web():
    with serve() as web:
        yield web


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache")


def put(web, name, size=1000):
    web.files[name] = hashlib.sha256(name.encode()).digest() * (size // 32 + 1)
    web.files[name] = web.files[name][:size]
    return f"{web.url}/{name}"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def names(cache):
    """The files that are there, without those for the cache's own use."""
    return sorted(path.name for path in cache.folder.glob("*/[!.]*"))


def leftovers(cache):
    return [path.name for suffix in ("partial", "room") for path in cache.folder.glob(f"*/.*.{suffix}")]


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_file_is_fetched_once_and_comes_whole(web, cache):
    url = put(web, "set/shard-000000.tar", 100_000)
    path = cache.fetch(url)
    assert path.read_bytes() == web.files["set/shard-000000.tar"]
    assert cache.fetch(url) == path
    assert web.gets["set/shard-000000.tar"] == 1
    assert leftovers(cache) == []


def test_a_sidecar_lies_beside_its_shard_and_other_folders_lie_apart(web, cache):
    shard = cache.fetch(put(web, "a/shard-000000.tar"))
    sidecar = cache.fetch(put(web, "a/shard-000000.index.jsonl"))
    other = cache.fetch(put(web, "b/shard-000000.tar"))
    assert sidecar == shard.with_name("shard-000000.index.jsonl")
    assert other != shard
    assert other.read_bytes() == web.files["b/shard-000000.tar"]
    assert index_url(f"{web.url}/a/shard-000000.tar?key=x") == f"{web.url}/a/shard-000000.index.jsonl?key=x"
    assert index_url("s3://b/a/s-0.tar") == "s3://b/a/s-0.index.jsonl"


def test_addresses_that_differ_in_their_query_are_different_files(cache):
    assert cache.path("https://h/a.tar?part=1") != cache.path("https://h/a.tar?part=2")


@pytest.mark.parametrize("failures", [[503, 503], [500], [429], [CUT], [DROPPED, 503, CUT]])
def test_a_server_that_fails_for_a_while_is_asked_again(failures, web, cache):
    url = put(web, "a.tar")
    web.failures["a.tar"].extend(failures)
    assert cache.fetch(url).read_bytes() == web.files["a.tar"]
    assert web.gets["a.tar"] == len(failures) + 1


@pytest.mark.parametrize("failure", [503, CUT, DROPPED])
def test_a_server_that_keeps_failing_is_named_and_leaves_nothing(failure, web, tmp_path):
    cache = ShardCache(tmp_path, attempts=2)
    url = put(web, "a.tar")
    web.failures["a.tar"].extend([failure] * 9)
    with pytest.raises(InputError, match=rf"{url}: could not be read in 2 attempts \(.*\); check network"):
        cache.fetch(url)
    # The library asks at once again where a connection was dropped.
    assert web.gets["a.tar"] == (4 if failure == DROPPED else 2)
    assert (names(cache), leftovers(cache)) == ([], [])


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "a.tar: no such file; check the address"),
        (403, "a.tar: no access"),
        (401, "a.tar: no access"),
        (400, "a.tar: the server refuses"),
    ],
)
def test_what_will_not_change_is_asked_for_once(status, message, web, cache):
    web.failures["a.tar"].append(status)
    with pytest.raises(InputError, match=message):
        cache.fetch(put(web, "a.tar"))
    assert web.gets["a.tar"] == 1


def test_what_is_forgotten_is_fetched_anew(web, cache):
    url = put(web, "a.index.jsonl")
    cache.fetch(url)
    web.files["a.index.jsonl"] = BODY
    cache.forget(url)
    assert cache.fetch(url).read_bytes() == BODY


def test_the_waits_grow(web, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    web.failures["a.tar"].extend([503] * 4)
    ShardCache(tmp_path).fetch(put(web, "a.tar"))
    first = remote.FIRST_WAIT_S
    bounds = [(first / 2 * 2**n, first * 2**n) for n in range(4)]
    assert len(waits) == 4
    assert all(low <= wait <= high for wait, (low, high) in zip(waits, bounds, strict=True))


def test_a_checksum_is_compared(web, cache):
    url = put(web, "a.tar")
    right, wrong = sha256(web.files["a.tar"]), "0" * 64
    with pytest.raises(InputError, match=f"{url}: its SHA-256 is {right}, but the manifest says {wrong}"):
        cache.fetch(url, wrong)
    assert names(cache) == []
    assert cache.fetch(url, right).read_bytes() == web.files["a.tar"]
    cache.fetch(url, right)
    assert web.gets["a.tar"] == 2  # one for the wrong checksum, one for the right one


def test_a_file_that_changed_is_fetched_anew_where_the_checksum_says_so(web, cache):
    url = put(web, "a.tar")
    cache.fetch(url)
    web.files["a.tar"] = BODY
    assert cache.fetch(url).read_bytes() != BODY
    assert cache.fetch(url, sha256(BODY)).read_bytes() == BODY
    assert cache.fetch(url).read_bytes() == BODY


def test_the_longest_unused_goes_first(web, tmp_path):
    cache = ShardCache(tmp_path, max_bytes=3000)
    urls = [put(web, f"{letter}.tar") for letter in "abcd"]
    for url in urls[:3]:
        cache.fetch(url)
        time.sleep(0.01)  # times of use that differ
    cache.fetch(urls[0])
    cache.fetch(urls[3])
    assert names(cache) == ["a.tar", "c.tar", "d.tar"]


def test_the_cache_keeps_its_size_also_where_the_server_tells_none(web, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module._OnSize, "set_size", lambda self, size: None)
    cache = ShardCache(tmp_path, max_bytes=2500)
    for letter in "abcde":
        cache.fetch(put(web, f"{letter}.tar"))
        time.sleep(0.01)
        assert sum(path.stat().st_size for path in cache.folder.glob("*/[!.]*")) <= 2500
    assert names(cache) == ["d.tar", "e.tar"]


def test_a_file_larger_than_the_cache_is_named(web, tmp_path):
    cache = ShardCache(tmp_path, max_bytes=999)
    with pytest.raises(InputError, match=r"a.tar has 1,000 bytes, more than max_bytes=999 of the cache"):
        cache.fetch(put(web, "a.tar"))
    assert leftovers(cache) == []


def test_an_open_file_stays_and_the_cache_says_that_it_grows(web, tmp_path, caplog):
    cache = ShardCache(tmp_path, max_bytes=1500)
    with cache.open(put(web, "a.tar")) as stream:
        cache.fetch(put(web, "b.tar"))
        assert names(cache) == ["a.tar", "b.tar"]
        assert "all files are in use, so the cache grows beyond max_bytes=1,500" in caplog.text
        assert stream.read() == web.files["a.tar"]
    cache.fetch(put(web, "c.tar"))
    assert names(cache) == ["c.tar"]


def _open_and_wait(cache, url, opened, done):
    with cache.open(url):
        opened.set()
        done.wait(PATIENCE_S)


def test_a_file_that_another_process_has_open_stays(web, tmp_path):
    cache = ShardCache(tmp_path, max_bytes=2000)
    url = put(web, "a.tar")
    cache.fetch(url)
    opened, done = FORK.Event(), FORK.Event()
    process = FORK.Process(target=_open_and_wait, args=(cache, url, opened, done))
    process.start()
    assert opened.wait(PATIENCE_S)
    time.sleep(0.01)
    cache.fetch(put(web, "b.tar"))
    cache.fetch(put(web, "c.tar"))
    assert names(cache) == ["a.tar", "c.tar"]
    done.set()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    cache.fetch(put(web, "d.tar"))
    assert names(cache) == ["c.tar", "d.tar"]


def test_a_file_opened_by_its_path_stays_readable_after_it_was_removed(web, tmp_path):
    cache = ShardCache(tmp_path, max_bytes=1500)
    path = cache.fetch(put(web, "a.tar"))
    with path.open("rb") as stream:
        cache.fetch(put(web, "b.tar"))
        assert not path.exists()
        assert stream.read() == web.files["a.tar"]


def _fetch(cache, url, sums):
    sums.put((os.getpid(), sha256(cache.fetch(url).read_bytes())))


def test_processes_that_want_the_same_file_fetch_it_once(web, cache):
    url = put(web, "a.tar", 300_000)
    web.gate.clear()
    sums = FORK.Queue()
    processes = [FORK.Process(target=_fetch, args=(cache, url, sums)) for _ in range(6)]
    for process in processes:
        process.start()
    wait_until(lambda: web.gets["a.tar"])
    web.gate.set()
    results = dict(sums.get(timeout=PATIENCE_S) for _ in processes)
    for process in processes:
        process.join(PATIENCE_S)
    assert set(results.values()) == {sha256(web.files["a.tar"])}
    assert len(results) == 6
    assert web.gets["a.tar"] == 1


def _fetch_all(cache, urls, seed, failures):
    try:
        for step in range(3 * len(urls)):
            url = urls[(step * (2 * seed + 1) + seed) % len(urls)]
            with cache.open(url) as stream:
                assert sha256(stream.read()) == sha256(_content(url))
    except BaseException as error:
        failures.put(repr(error))
        raise


def _content(url):
    name = url.rpartition("/")[2]
    return (hashlib.sha256(name.encode()).digest() * 32)[:1000]


def test_processes_that_crowd_a_small_cache_read_what_they_asked_for(web, tmp_path):
    """Seven files in room for three, four processes: every file comes and goes all the time."""
    urls = [put(web, f"{letter}.tar") for letter in "abcdefg"]
    cache, failures = ShardCache(tmp_path, max_bytes=3000), FORK.Queue()
    processes = [FORK.Process(target=_fetch_all, args=(cache, urls, seed, failures)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0] * 4, failures.get(timeout=1)
    cache.fetch(urls[0])
    assert sum(web.gets.values()) > len(urls)
    assert leftovers(cache) == []
    cache.fetch(put(web, "last.tar"))
    assert len(names(cache)) <= 3


def test_a_download_in_flight_counts_and_is_not_removed(web, tmp_path):
    """Two files of 1000 bytes do not fit: while the one waits for its body, the other finds no room."""
    cache = ShardCache(tmp_path, max_bytes=2500)
    kept = cache.fetch(put(web, "old.tar", 1000))
    slow = cache.path(put(web, "slow.tar", 1000))
    with cache._lock(slow):
        slow.with_name(".slow.tar.partial").write_bytes(b"half")
        cache_module._hidden(slow, "room").write_bytes(b"")
        os.truncate(cache_module._hidden(slow, "room"), 1000)
        cache.fetch(put(web, "new.tar", 1000))
        assert not kept.exists()
        assert leftovers(cache) == [".slow.tar.partial", ".slow.tar.room"]


def test_what_a_killed_process_left_is_removed(web, cache):
    path = cache.path(f"{web.url}/dead.tar")
    path.parent.mkdir()
    for suffix in ("partial", "room"):
        cache_module._hidden(path, suffix).write_bytes(bytes(500))
    cache.fetch(put(web, "a.tar"))
    assert leftovers(cache) == []


def test_prefetched_files_come_in_order_and_failures_wait_for_fetch(web, cache):
    urls = [put(web, "a.tar"), f"{web.url}/missing.tar", put(web, "b.tar")]
    cache.prefetch(urls)
    wait_until(lambda: names(cache) == ["a.tar", "b.tar"])
    assert list(web.gets) == ["a.tar", "missing.tar", "b.tar"]
    with pytest.raises(InputError, match=r"missing.tar: no such file"):
        cache.fetch(urls[1])


def test_a_newer_wish_replaces_what_was_not_begun(web, cache):
    web.gate.clear()
    cache.prefetch([put(web, "a.tar"), put(web, "b.tar")])
    wait_until(lambda: web.gets["a.tar"])
    cache.prefetch([put(web, "c.tar")])
    web.gate.set()
    wait_until(lambda: names(cache) == ["a.tar", "c.tar"])
    assert "b.tar" not in web.gets


def test_prefetch_leaves_to_others_what_they_fetch_and_goes_on(web, cache):
    taken, free = put(web, "a.tar"), put(web, "b.tar")
    with cache._lock(cache.path(taken)):
        cache.prefetch([taken, free])
        wait_until(lambda: names(cache) == ["b.tar"])
    assert "a.tar" not in web.gets


def test_what_is_soon_needed_again_stays(web, tmp_path):
    cache = ShardCache(tmp_path, max_bytes=2500)
    urls = [put(web, f"{letter}.tar") for letter in "abc"]
    for url in urls[:2]:
        cache.fetch(url)
        time.sleep(0.01)
    cache.prefetch(urls[:1])
    time.sleep(0.01)
    cache.fetch(urls[2])
    assert names(cache) == ["a.tar", "c.tar"]


def test_fetch_waits_for_the_prefetch_of_the_same_file(web, cache):
    url = put(web, "a.tar")
    web.gate.clear()
    cache.prefetch([url])
    wait_until(lambda: web.gets["a.tar"])
    web.gate.set()
    assert cache.fetch(url).read_bytes() == web.files["a.tar"]
    assert web.gets["a.tar"] == 1


def test_it_can_be_sent_to_a_worker(web, cache):
    cache.prefetch([put(web, "a.tar")])
    wait_until(lambda: names(cache) == ["a.tar"])
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.fetch(f"{web.url}/a.tar") == cache.path(f"{web.url}/a.tar")


def test_an_open_file_is_opened_again_without_a_request_and_with_its_checksum(web, cache):
    url = put(web, "a.tar")
    cache.open(url).close()
    with cache.open(url, sha256(web.files["a.tar"])) as stream:
        assert stream.read() == web.files["a.tar"]
    assert web.gets["a.tar"] == 1
    web.files["a.tar"] = BODY
    with cache.open(url, sha256(BODY)) as stream:
        assert stream.read() == BODY


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_anew(web, cache, monkeypatch):
    """Removed and fetched anew between the opening and the lock: what was opened has no name any more."""
    url = put(web, "a.tar")
    path = cache.fetch(url)
    lock, done = fcntl.flock, []

    def replaces(stream, how):
        if how == fcntl.LOCK_SH | fcntl.LOCK_NB and not done:
            done.append(path.unlink())
            web.files["a.tar"] = BODY
            cache.fetch(url)
        return lock(stream, how)

    monkeypatch.setattr(cache_module.fcntl, "flock", replaces)
    with cache.open(url) as stream:
        assert stream.read() == BODY
    assert done


def test_a_full_disk_is_named_and_nothing_half_is_left(web, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    url = put(web, "a.tar")
    monkeypatch.setattr(remote._open(url)[0], "get_file", full)
    with pytest.raises(InputError, match=rf"{url}: the disk is full \(No space left on device\); free space"):
        cache.fetch(url)
    assert (names(cache), leftovers(cache)) == ([], [])


def test_locks_are_free_after_a_failure(web, cache):
    url = put(web, "a.tar")
    web.failures["a.tar"].append(404)
    with pytest.raises(InputError):
        cache.fetch(url)
    with cache.open(url) as stream:
        assert stream.read() == web.files["a.tar"]
    with cache.path(url).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("settings", [{"max_bytes": 0}, {"attempts": 0}])
def test_sizes_must_be_positive(settings, tmp_path):
    with pytest.raises(InputError, match="must be positive"):
        ShardCache(tmp_path, **settings)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/cache: the cache cannot be made there"):
        ShardCache(tmp_path / "file" / "cache")


def test_an_address_without_a_file_name_is_refused(cache):
    with pytest.raises(InputError, match="names no file"):
        cache.fetch("s3://bucket/folder/")
