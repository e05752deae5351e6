# SPDX-License-Identifier: Apache-2.0
"""The promises of conftest.py hold."""

import os
import socket
import tempfile

import pytest
import torch

from ixc_lightning.functional.masking import mean_pool


def test_another_machine_cannot_be_reached():
    with pytest.raises(RuntimeError, match="tests run offline"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="tests run offline"):
        socket.getaddrinfo("example.org", 443)
    with socket.socket() as client, pytest.raises(RuntimeError, match="tests run offline"):
        client.connect_ex(("192.0.2.1", 80))


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_the_home_directory_is_temporary():
    assert os.path.expanduser("~").startswith(tempfile.gettempdir())


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_from_the_same_seed_and_environment(turn):
    assert torch.initial_seed() == 20250121
    assert "LEFT_BEHIND" not in os.environ
    torch.manual_seed(turn)
    os.environ["LEFT_BEHIND"] = str(turn)


def test_shape_annotations_are_executed():
    with pytest.raises(Exception, match="Type-check"):
        mean_pool(torch.zeros(2, 3, 4), torch.ones(2, 5, dtype=torch.bool))
