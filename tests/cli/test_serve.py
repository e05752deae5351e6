# SPDX-License-Identifier: Apache-2.0
"""The command as its own process: a crowd of callers, memory, its end, and settings that make no sense."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import httpx
import pytest
import torch

from ixc_lightning.cli.serve import serve
from ixc_lightning.datamodules.processing import ChatEncoder
from ixc_lightning.models import RewardModel
from ixc_lightning.scoring import Scorer
from ixc_lightning.types import InputError
from tests.digits import FRAMES
from tests.serving.records import clip, picture, said, text_of

SCORE_TOLERANCE = 1e-5  # float32, sums in another order
REQUESTS = 200
BODY = 1_000_000
OVERSIZED = 16 * BODY
GROWTH = 150_000_000  # bytes; the oversized bodies together have more than three times as many
STARTS = 120.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """An exported reward model and its processor."""
    torch.manual_seed(3)
    out = tmp_path_factory.mktemp("reward") / "model"
    RewardModel(str(tiny_folder)).save_pretrained(out)
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(out)
    return out


@contextmanager
def _running(folder, *words):
    """The service in a process of its own, and its address."""
    command = [sys.executable, "-m", "ixc_lightning", "serve", str(folder), "--port", "0", "--device", "cpu"]
    command += ["--video_frames", str(FRAMES), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    too_late = threading.Timer(STARTS, process.kill)
    too_late.start()
    try:
        line = next((line for line in process.stdout if line.startswith("serving ")), "")
        assert line, process.stderr.read()
        url = re.search(r"http://[\d.:]+", line)[0]
        while True:
            try:
                if httpx.get(url + "/health/ready").status_code == 200:
                    break
            except httpx.ConnectError:
                assert process.poll() is None
        too_late.cancel()
        yield process, url
    finally:
        too_late.cancel()
        process.kill()
        process.communicate()


def _most_memory(process):
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return 1000 * int(line)


def _good(n):
    """Path and body of a good request, what Python says to it, and where the answer says it."""
    answer, image, other = f"a {n} nine", picture(n), picture(n + 1)
    turns = said(answer, "what is it?", "image")
    written = f"<|user|><image>what is it?<|end|><|assistant|>{answer}<|end|>"
    match n % 6:
        case 0:
            body = {"conversations": [said(answer)]}
            return "/score", body, lambda it: it.score([said(answer)]), lambda got: got["scores"]
        case 1:
            body = {"conversations": [turns, said("two")], "images": [[text_of(image)], []]}
            expected = lambda it: it.score([turns, said("two")], [[image], []])  # noqa: E731
            return "/score", body, expected, lambda got: got["scores"]
        case 2:
            body = {"conversation": "how many?", "a": answer, "b": "two", "videos": [text_of(clip(n))]}
            expected = lambda it: [*it.compare("how many?", answer, "two", videos=[clip(n)])]  # noqa: E731
            return "/compare", body, expected, lambda got: [got["a"], got["b"]]
        case 3:
            words = ["one", answer, "three"]
            images = [image, other]
            body = {"conversation": "sum?", "responses": words, "images": [text_of(one) for one in images]}
            return "/rank", body, lambda it: it.rank("sum?", words, images), lambda got: got["ranks"]
        case 4:
            body = {"query": [written], "prompts": None, "images": [[text_of(image)]]}
            return "/get_reward", body, lambda it: it.score([turns], [[image]]), lambda got: got["rewards"]
        case _:
            body = {"input": written, "images": [text_of(image)]}
            expected = lambda it: it.score([turns], [[image]])  # noqa: E731
            return "/classify", body, expected, lambda got: got["data"][0]["probs"]


def _bad(n):
    """A request that is refused, in turn malformed and oversized, and the statuses that say so."""
    turns = [said("two")]
    cases = [
        (b'{"conversations": [', (400,)),
        (b" " * OVERSIZED, (413,)),
        ({"conversations": [[{"role": "robot", "content": "x"}]]}, (422,)),
        ({"conversations": turns, "images": [[text_of(b"\0" * OVERSIZED)]]}, (413,)),
        ({"conversations": turns, "images": [[text_of(picture()[:700])]]}, (422,)),
        ({"conversations": turns * 9}, (422,)),
        ({"conversations": turns, "images": [[text_of(picture(size=400))]]}, (422,)),
        ({"conversations": turns, "images": [["/etc/passwd"]]}, (422,)),
        ({"conversations": [said("two " * 400)]}, (422,)),
        ({"conversations": turns, "images": [["http://127.0.0.1:9/"]]}, (422,)),
    ]
    return cases[n % len(cases)]


async def _crowd(url, good, bad):
    """Post all at once; return the answers of both."""
    limits = httpx.Limits(max_connections=REQUESTS)
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=STARTS, limits=limits) as client:
        answers = await asyncio.gather(
            *(client.post(path, json=body) for path, body, *_ in good),
            *(
                client.post("/score", content=body, headers=headers)
                if isinstance(body, bytes)
                else client.post("/score", json=body)
                for body, _ in bad
            ),
        )
    return answers[: len(good)], answers[len(good) :]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_of_a_crowd_every_good_request_is_answered_right_and_every_bad_one_with_a_reason(folder):
    good = [_good(n) for n in range(REQUESTS - 60)]
    bad = [_bad(n) for n in range(60)]
    scorer = Scorer.from_pretrained(folder, video_frames=FRAMES, device="cpu")
    words = ("--max_body_mb", "1", "--max_responses", "8", "--max_megapixels", "0.1", "--max_tokens", "256")
    with _running(folder, *words) as (process, url):
        assert httpx.post(url + "/score", json=_good(1)[1]).status_code == 200  # has loaded what it needs
        before = _most_memory(process)
        answered, refused = asyncio.run(_crowd(url, good, bad))
        growth = _most_memory(process) - before
        metrics = httpx.get(url + "/metrics").text
    for (_, body, expected, found), answer in zip(good, answered, strict=True):
        assert answer.status_code == 200, (body, answer.text)
        assert found(answer.json()) == pytest.approx(expected(scorer), abs=SCORE_TOLERANCE)
    for (body, statuses), answer in zip(bad, refused, strict=True):
        assert answer.status_code in statuses, (str(body)[:200], answer.text)
        assert list(answer.json()) == ["error"]
        assert len(answer.json()["error"]) > 10
    counted = re.findall(r'^ixc_requests_total\{endpoint="/\w+",status="(\d+)"\} ([\d.]+)', metrics, re.M)
    totals = Counter()
    for status, count in counted:
        totals[int(status)] += float(count)
    assert totals[200] >= len(good)
    assert sum(totals[status] for status in (400, 413, 422)) == len(bad)
    assert growth < GROWTH, f"{growth:,} bytes more"


@pytest.mark.slow
def test_what_was_asked_before_the_end_is_answered(folder):
    with _running(folder) as (process, url), ThreadPoolExecutor() as pool:
        body = {"conversation": "how many?", "responses": [f"{n} nine" for n in range(200)]}
        asked = [pool.submit(httpx.post, url + "/rank", json=body, timeout=STARTS) for _ in range(3)]
        while "ixc_queue_length 3" not in httpx.get(url + "/metrics").text:
            if any(one.done() for one in asked):
                break
        process.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in asked] == [200, 200, 200]
        assert process.wait(STARTS) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "--max_tokens is 0, but must be more than 0"),
        ({"seconds": -1.0}, "--seconds is -1.0"),
        ({"media": "/no/such/folder"}, "--media: there is no folder"),
        ({"port": 70000}, "--port is 70000; ports go from 0"),
    ],
)
def test_settings_that_make_no_sense_are_told(options, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        serve(str(tmp_path), **{"port": 0, **options})


def test_a_port_in_use_is_told_before_a_model_is_loaded(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(InputError, match="give another --host or --port"),
    ):
        serve(str(tmp_path), port=other.getsockname()[1])


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(InputError, match="so it is not a reward model"):
        serve(str(tmp_path), port=0)


def test_a_library_that_is_missing_is_named_with_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "ixc_lightning.serving.libraries")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(InputError, match=r"needs fastapi: pip install 'ixc-lightning\[serve\]'"):
        import_module("ixc_lightning.serving.libraries")
