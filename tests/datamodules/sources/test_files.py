# SPDX-License-Identifier: Apache-2.0
"""Files: found here and on the hub, in a fixed order, and never two splits at once."""

import json
import os
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ixc_lightning.datamodules.sources._files import find_files, name_of
from ixc_lightning.types import InputError
from tests.datamodules.sources.fixtures import write_jsonl


def test_a_folder_is_searched_in_order_and_a_pattern_too(tmp_path):
    for name in ("b/2.jsonl", "a/1.json", "a/readme.md", "c.jpg"):
        write_jsonl(tmp_path / name, {})
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path))]
    assert names == ["a/1.json", "b/2.jsonl"]
    assert [path.name for path in find_files(f"{tmp_path}/*/?.jsonl")] == ["2.jsonl"]


def test_splits_are_not_mixed_unless_they_are_named(tmp_path):
    for name in ("helpful/train.jsonl", "helpful/test.jsonl"):
        write_jsonl(tmp_path / name, {})
    with pytest.raises(InputError, match=r"holds several splits \(helpful/test.jsonl, helpful/train.jsonl\)"):
        list(find_files(str(tmp_path)))
    assert len(list(find_files(f"{tmp_path}/*/train.jsonl"))) == 1


@pytest.mark.parametrize(
    "source", ["nowhere", "nowhere/at/all", "nowhere.jsonl", "data/nowhere.jsonl", "./data", "*.parquet"]
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        list(find_files(source))


def test_a_hub_id_without_a_network_says_what_to_do():
    with pytest.raises(InputError, match=r"some/set: is no file or folder here, and the hub cannot give it"):
        list(find_files("some/set"))


def test_a_folder_without_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"holds no file that ends in .parquet, .jsonl"):
        list(find_files(str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("some/set", "set"),
        ("hf://datasets/some/set.v2@main/data/train-*.parquet", "set.v2"),
        ("downloads/charts.v2.jsonl.gz", "charts"),
        ("downloads/charts/*/train-?.parquet", "charts"),
        ("./charts.json", "charts"),
    ],
)
def test_a_data_set_is_named_by_what_is_read(source, name):
    assert name_of(source) == name


COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILES = {"data/train-0.jsonl": b'{"id": 7}\n', "data/test-0.jsonl": b'{"id": 8}\n', "README.md": b"hello"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: what a data set holds, and its files."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if self.path.startswith("/api/datasets/some/set"):
            files = [{"rfilename": file} for file in HUB_FILES]
            self.reply(json.dumps({"id": "some/set", "sha": COMMIT, "siblings": files}).encode())
        elif name in HUB_FILES:
            self.reply(HUB_FILES[name])
        else:
            self.send_error(404)

    def reply(self, data):
        self.send_response(200)
        for header, value in (
            ("Content-Length", len(data)),
            ("ETag", f'"{len(data)}"'),
            ("X-Repo-Commit", COMMIT),
        ):
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """Runs ``find_files`` in a process whose hub is a server of this machine; gives contents or errors."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        code = (
            "import sys\nfrom ixc_lightning.datamodules.sources._files import find_files\n"
            "from ixc_lightning.types import InputError\n"
            "for source in sys.argv[1:]:\n"
            "    try: print(*(path.read_text().strip() for path in find_files(source)))\n"
            "    except InputError as error: print(error)"
        )

        def find(*sources):
            command = [sys.executable, "-W", "ignore", "-c", code, *sources]
            environment = os.environ | settings | {"HF_HOME": str(tmp_path / "hub")}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return ended.stdout.splitlines()

        yield find
        server.shutdown()


def test_files_of_the_hub_are_found_by_pattern_and_fetched(hub):
    found, splits, pattern, name = hub(
        "hf://datasets/some/set/data/train-*.jsonl",
        "some/set",
        "hf://datasets/some/set@main/other-*",
        "other/set",
    )
    assert found == '{"id": 7}'
    assert "some/set: holds several splits" in splits
    assert "the data set has no such file" in pattern
    assert "other/set: is no file or folder here, and the hub cannot give it" in name
