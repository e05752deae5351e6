# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on: no network, a temporary home, the same seed, and an environment of its own."""

import ipaddress
import os
import random
import shutil
import socket
import tempfile
import time
from functools import cache

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings

SEED = 20250121
BEGAN = time.monotonic()

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


class NetworkAccessError(RuntimeError):
    """A test tried to leave this machine."""


def is_local(host) -> bool:
    """Whether ``host`` is this machine, without asking a name server."""
    if host in (None, "", b"", "localhost", b"localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def host_of_address(_, address) -> str | None:
    """The host that a socket address names; an address of AF_UNIX is a path and names none."""
    return address[0] if isinstance(address, tuple) else None


def guarded(function, host_of):
    """``function``, except that it raises where ``host_of`` its arguments is another machine."""

    def call(*args, **kwargs):
        host = host_of(*args, **kwargs)
        if not is_local(host):
            raise NetworkAccessError(f"a test tried to reach {host!r}; tests run offline")
        return function(*args, **kwargs)

    return call


def pytest_addoption(parser):
    parser.addoption(
        "--begin-within",
        type=float,
        metavar="SECONDS",
        help="skip every test that has not begun by then, and say so: for a machine that is lent for a time",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    limit = item.config.getoption("--begin-within")
    if limit is not None and time.monotonic() - BEGAN > limit:
        pytest.skip(f"no time was left: it did not begin within {limit:g} s")


def pytest_configure(config):
    """Isolate the run before a test module, or a library that reads the environment, is imported."""
    home = tempfile.mkdtemp(prefix="ixc-lightning-tests-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ.update(
        HOME=home,
        XDG_CACHE_HOME=f"{home}/.cache",
        HF_HOME=f"{home}/.cache/huggingface",
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TRANSFORMERS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        TORCH_HOME=f"{home}/.cache/torch",
    )
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), host_of_address))
    patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_, **__: host))


@pytest.fixture(autouse=True)
def _same_start():
    """Seed every generator, and give back the environment as it was."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def unchecked_shapes():
    """Switch the checking of annotated shapes off, as for users, to see what functions check themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits data set in small: 48 pairs and 48 instructions of all modalities, 16 held-out ones each."""
    from ixc_lightning.datamodules.sources.digits import convert
    from tests.digits import HELDOUT, PAIRS

    folder = tmp_path_factory.mktemp("data") / "digits"
    convert(str(folder), pairs=PAIRS, instructions=PAIRS, prompts=4, heldout_pairs=HELDOUT)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The tiny model with fresh weights, as a Hugging Face folder."""
    from ixc_lightning.models.tiny import build_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(tiny_folder, tmp_path_factory):
    """An exported reward model with statistics, and its processor."""
    from ixc_lightning.datamodules.processing import ChatEncoder
    from ixc_lightning.models import RewardModel

    torch.manual_seed(3)
    model = RewardModel(str(tiny_folder))
    model.store_statistics(0.5, 2.0)
    out = tmp_path_factory.mktemp("reward") / "model"
    model.save_pretrained(out)
    ChatEncoder(str(tiny_folder)).processor.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random model of a family of ``tests.families``, by name, built once."""
    from tests.families import Tiny

    return cache(lambda name: Tiny.build(name, tmp_path_factory.mktemp(name)))
