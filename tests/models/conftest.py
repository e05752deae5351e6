# SPDX-License-Identifier: Apache-2.0
"""Tiny families, each built once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.families import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """A tiny family by name."""
    return cache(lambda name: Tiny.build(name, tmp_path_factory.mktemp(name)))
