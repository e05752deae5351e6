# SPDX-License-Identifier: Apache-2.0
"""What a recipe needs is made once, by one process, and only where the run uses it."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jsonargparse import Namespace

from ixc_lightning.cli import needs
from ixc_lightning.cli.needs import Need, make_missing
from ixc_lightning.types import InputError


@pytest.fixture
def commands(monkeypatch):
    """The commands that were started, with their environments; instead of running, each makes its folder."""
    started = []

    def start(command, env, check):
        started.append((command, env))
        time.sleep(0.2)  # long enough for others to find nothing there yet
        os.mkdir(command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(needs.subprocess, "run", start)
    return started


def _used(*paths):
    return Namespace(data=Namespace(train=list(paths)))


def test_what_is_missing_is_made_by_its_command(tmp_path):
    need = Need(str(tmp_path / "tiny"), ["tiny", str(tmp_path / "tiny")])
    make_missing([need], used_by=_used(f"{need.path}/config.json"))
    assert (tmp_path / "tiny/model.safetensors").exists()


def test_what_is_there_is_not_made_again(tmp_path, commands):
    (tmp_path / "there").mkdir()
    make_missing([Need(str(tmp_path / "there"), ["tiny"])], used_by=_used(str(tmp_path / "there")))
    assert not commands


@pytest.mark.parametrize("used", ["mine", "tiny2", "below/tiny"])
def test_nothing_is_made_for_a_run_that_names_other_paths(used, tmp_path, commands):
    path = str(tmp_path / "tiny")
    settings = Namespace(needs=[path], data=Namespace(train=str(tmp_path / used)))
    make_missing([Need(path, ["tiny", path])], used_by=settings)
    assert not commands


def test_the_home_directory_is_expanded_in_path_and_command(tmp_path, commands, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_missing([Need("~/tiny", ["tiny", "~/tiny"])], used_by=_used("~/tiny"))
    assert commands[0][0] == [sys.executable, "-m", "ixc_lightning", "tiny", str(tmp_path / "tiny")]


def test_processes_that_start_together_make_it_once(tmp_path, commands):
    need = Need(str(tmp_path / "tiny"), ["tiny", str(tmp_path / "tiny")])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make_missing([need], used_by=_used(need.path)), range(4)))
    assert len(commands) == 1


def test_the_command_does_not_take_itself_for_a_rank_of_the_launcher(tmp_path, commands, monkeypatch):
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID")
    for name in launcher:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", "kept")
    make_missing(
        [Need(str(tmp_path / "a"), ["tiny", str(tmp_path / "a")])], used_by=_used(str(tmp_path / "a"))
    )
    environment = commands[0][1]
    assert not set(launcher) & set(environment)
    assert environment["HF_HOME"] == "kept"


def test_a_command_that_fails_is_one_message_that_names_it(tmp_path):
    path = str(tmp_path / "tiny")
    with pytest.raises(InputError, match="`python -m ixc_lightning nonsense` ended with status 2"):
        make_missing([Need(path, ["nonsense"])], used_by=_used(path))


def test_a_command_that_leaves_nothing_at_the_path_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(needs.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    path = str(tmp_path / "tiny")
    with pytest.raises(InputError, match="wrote nothing there"):
        make_missing([Need(path, ["recipes"])], used_by=_used(path))
